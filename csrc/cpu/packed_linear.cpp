#include "cpu/packed_linear.h"

#include <algorithm>
#include <vector>

#include "common/error.h"
#include "cpu/bfloat16.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace tts {
namespace {

// Of 4 panels 16 KiB, half of an L1 cache. 32 and 128 were no faster on Cascade Lake.
constexpr int64_t kRunWords = 64;
constexpr int64_t kFirstRows = 96;  // at most; their sums, 24 KiB, and words of x stay in the L2 cache

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

// Rows [begin, end) times the panels of a unit. The first rows take words in runs that stay in the L1 cache
// while all of them are multiplied; meanwhile the next run comes from memory. Two blocks wait for memory
// anyway, and later rows have the panels in the L2 cache: those take all words at once.
void multiply_rows(const LinearKernels& kernels, LinearBlock block, const PackedLinearTask& task,
                   int64_t words, int64_t begin, int64_t end, int panels) {
  // As even blocks as they come: a small one cannot hide the latency of its sums.
  const int64_t blocks = (end - begin + kernels.max_rows - 1) / kernels.max_rows;
  const int64_t run = begin == 0 && blocks > 2 ? kRunWords : words;
  thread_local std::vector<float> sums;
  const int64_t width = int64_t{kPanelOutputs} * panels;
  if (run < words) sums.resize(std::max(sums.size(), static_cast<size_t>((end - begin) * width)));
  const int64_t steps = task.inputs / words;  // per word, and so words of x: 2 where x has floats, not pairs
  const LinearBlock all = block;
  for (int64_t word = 0; word < words; word += run) {
    block.panels = all.panels + word * kPanelOutputs;
    block.words = static_cast<int>(std::min(run, words - word));
    block.first = word == 0;
    block.last = word + run >= words;
    block.ahead = block.last ? nullptr : block.panels + run * kPanelOutputs;
    block.fetch_stride = static_cast<int>(blocks);
    for (int64_t i = 0; i < blocks; ++i) {
      const int64_t row = begin + i * (end - begin) / blocks,
                    row_end = begin + (i + 1) * (end - begin) / blocks;
      block.fetch_first = static_cast<int>(i);
      block.x = all.x + row * block.x_stride + word * (kernels.pairs ? 1 : steps);
      block.out = all.out + row * block.out_stride;
      block.sums = sums.data() + (row - begin) * width;
      kernels.multiply(block, static_cast<int>(row_end - row), panels);
    }
  }
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
    block.x = x.data;
    block.x_stride = x.stride;
    block.panels = static_cast<const uint32_t*>(task.weight) + first * words * kPanelOutputs;
    block.panel_stride = words * kPanelOutputs;
    block.bias = task.bias == nullptr ? nullptr : task.bias + first * kPanelOutputs;
    block.out = task.out + first * kPanelOutputs / (swiglu ? 2 : 1);
    block.out_stride = task.out_stride;
    block.end = task.end;
    const int64_t first_rows = std::min(task.rows, kFirstRows);
    multiply_rows(kernels, block, task, words, 0, first_rows, panels);
    if (first_rows < task.rows) multiply_rows(kernels, block, task, words, first_rows, task.rows, panels);
  });
}

}  // namespace tts
