#include "cpu/packed_linear.h"

#include <algorithm>
#include <vector>

#include "common/error.h"
#include "cpu/bfloat16.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace tts {
namespace {

// Rows as the kernels read them: where they lie, or converted.
struct RowWords {
  const uint32_t* data;
  int64_t stride;
};

RowWords pack_rows(const PackedLinearTask& task, bool pairs, std::vector<uint32_t>& memory) {
  if (!pairs && task.x_dtype == DType::kFloat32) {
    return {static_cast<const uint32_t*>(task.x), task.x_stride};
  }
  if (pairs && task.x_dtype == DType::kBFloat16 && task.x_stride % 2 == 0) {
    return {static_cast<const uint32_t*>(task.x), task.x_stride / 2};
  }
  const int64_t words = pairs ? task.inputs / 2 : task.inputs;
  memory.resize(static_cast<size_t>(task.rows * words));
  for (int64_t row = 0; row < task.rows; ++row) {
    uint32_t* out = memory.data() + row * words;
    if (pairs) {
      auto* halves = reinterpret_cast<uint16_t*>(out);
      for (int64_t i = 0; i < task.inputs; ++i) {
        const int64_t at = row * task.x_stride + i;
        halves[i] = task.x_dtype == DType::kFloat32 ? round_to_bfloat16(static_cast<const float*>(task.x)[at])
                                                    : static_cast<const uint16_t*>(task.x)[at];
      }
    } else {
      const uint16_t* x = static_cast<const uint16_t*>(task.x) + row * task.x_stride;
      for (int64_t i = 0; i < task.inputs; ++i) out[i] = uint32_t{x[i]} << 16;
    }
  }
  return {memory.data(), words};
}

}  // namespace

void packed_linear(const PackedLinearTask& task, int num_threads) {
  const bool bfloat16 = task.weight_dtype == DType::kBFloat16, swiglu = task.end == LinearEnd::kSwiGLU;
  require(task.inputs > 0 && (!bfloat16 || task.inputs % 2 == 0), "weight: got ", task.inputs,
          " inputs, expected at least 1, an even number in bfloat16");
  require(!swiglu || task.num_panels % 2 == 0, "weight: got ", task.num_panels,
          " panels, expected an even number for swiglu");
  const LinearKernels& kernels = bfloat16 ? cpu_isa().linear_bfloat16 : cpu_isa().linear_float32;
  thread_local std::vector<uint32_t> memory;
  const RowWords x = pack_rows(task, kernels.pairs, memory);
  const int64_t words = bfloat16 ? task.inputs / 2 : task.inputs;

  // A unit is a block of panels for all rows: its weights are read from memory once, and then from the cache.
  const int64_t units = (task.num_panels + kernels.max_panels - 1) / kernels.max_panels;
  parallel_for(num_threads, units, [&](int64_t unit) {
    const int64_t first = unit * kernels.max_panels;
    const int panels = static_cast<int>(std::min<int64_t>(kernels.max_panels, task.num_panels - first));
    LinearBlock block{};
    block.x_stride = x.stride;
    block.panels = static_cast<const uint32_t*>(task.weight) + first * words * kPanelOutputs;
    block.words = words;
    block.bias = task.bias == nullptr ? nullptr : task.bias + first * kPanelOutputs;
    block.out_stride = task.out_stride;
    block.end = task.end;
    const int64_t column = first * kPanelOutputs / (swiglu ? 2 : 1);
    // As even parts as they come: a small block cannot hide the latency of its sums.
    const int64_t parts = (task.rows + kernels.max_rows - 1) / kernels.max_rows;
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t begin = part * task.rows / parts, end = (part + 1) * task.rows / parts;
      block.x = x.data + begin * x.stride;
      block.out = task.out + begin * task.out_stride + column;
      kernels.multiply(block, static_cast<int>(end - begin), panels);
    }
  });
}

}  // namespace tts
