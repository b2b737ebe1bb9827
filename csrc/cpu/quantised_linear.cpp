#include "cpu/quantised_linear.h"

#include <algorithm>
#include <vector>

#include "common/error.h"
#include "cpu/runtime/bfloat16.h"
#include "cpu/runtime/isa.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/scratch.h"

namespace tts {
namespace {

// Of x, which a unit reads again for each pair of panels: a part of an L2 cache.
constexpr int64_t kUnitRowBytes = 1 << 20;
constexpr int64_t kSmall = 1 << 15;  // elements whose conversion is not worth waking threads
constexpr int64_t kUnitPanels = 8;

int64_t units_of(int64_t n, int64_t size) { return (n + size - 1) / size; }

// The rows as the kernels read them, `stride` words apart.
const uint32_t* quantise_rows(const QuantisedLinearTask& task, const QuantKernels& kernels, int64_t padded,
                              int64_t stride, Scratch& memory, int num_threads) {
  uint32_t* const begin = memory.reserve(static_cast<size_t>(task.rows * stride));
  parallel_for(task.rows * task.inputs < kSmall ? 1 : num_threads, task.rows, [&](int64_t row) {
    thread_local std::vector<float> wide;
    const float* x = static_cast<const float*>(task.x) + row * task.x_stride;
    if (task.x_dtype == DType::kBFloat16) {
      const auto* halves = static_cast<const uint16_t*>(task.x) + row * task.x_stride;
      wide.resize(static_cast<size_t>(task.inputs));
      std::transform(halves, halves + task.inputs, wide.begin(), widen_bfloat16);
      x = wide.data();
    }
    kernels.quantise(x, task.inputs, padded, task.form.group, task.form.offset, begin + row * stride);
  });
  return begin;
}

}  // namespace

QuantLayout quant_layout(const QuantForm& form) {
  const int largest = form.has_table ? *std::max_element(form.table, form.table + 16) : (1 << form.bits) - 1;
  require(form.bits == 4 || form.bits == 5 || form.bits == 6 || form.bits == 8, "form: got ", form.bits,
          " bits, expected 4, 5, 6 or 8");
  require(form.group == 16 || form.group == 32, "form: got groups of ", form.group, ", expected 16 or 32");
  require(form.offset >= 0 && form.offset <= 128 && largest - form.offset <= 127, "form: got values up to ",
          largest, " less ", form.offset, ", expected what an int8 holds");
  require(!form.has_min || form.offset == 0, "form: got an offset beside minima, expected one of the two");
  require(!form.has_min || !form.has_zeros,
          "form: got minima beside zero points, expected one of the two");
  require(!form.has_table || form.bits == 4, "form: got a table for ", form.bits, " bits, expected 4 bits");
  const bool two_level = form.scales == QuantScales::kTwoLevel;
  require(!two_level || !form.has_zeros,
          "form: got zero points beside scales in two levels, expected minima");
  const int inputs = two_level ? kChunkInputs : kPlaneInputs;
  const int scales = inputs / form.group * kPanelOutputs;
  const int scale_bytes = scales * (two_level ? 1 : form.scales == QuantScales::kFloat32 ? 4 : 2);
  const int factor_bytes = two_level ? kPanelOutputs * static_cast<int>(sizeof(float)) : 0;
  QuantLayout layout{};
  layout.inputs = inputs;
  layout.scales_at = (form.has_min ? 2 : 1) * factor_bytes;
  layout.mins_at = layout.scales_at + scale_bytes;
  layout.planes_at = layout.mins_at + (form.has_min ? scale_bytes : form.has_zeros ? scales : 0);
  layout.plane_bytes = kPlaneInputs * kPanelOutputs * form.bits / 8;
  layout.bytes = layout.planes_at + inputs / kPlaneInputs * layout.plane_bytes;
  return layout;
}

void quantised_linear(const QuantisedLinearTask& task, int num_threads) {
  const QuantLayout layout = quant_layout(task.form);
  const bool swiglu = task.end == LinearEnd::kSwiGLU;
  require(task.inputs > 0 && task.inputs % kXGroup == 0, "x: got ", task.inputs,
          " inputs, expected a multiple of ", kXGroup);
  require(task.blocks == units_of(task.inputs, layout.inputs), "weight: got ", task.blocks, " blocks of ",
          layout.inputs, " inputs, expected ", units_of(task.inputs, layout.inputs), " for ", task.inputs);
  require(!swiglu || task.num_panels % 2 == 0, "weight: got ", task.num_panels,
          " panels, expected an even number for swiglu");
  const QuantKernels& kernels = cpu_isa().kernels.quantised;
  const int64_t padded = task.blocks * layout.inputs, stride = padded / kXGroup * kernels.group_words;
  thread_local Scratch memory;
  const uint32_t* const x = quantise_rows(task, kernels, padded, stride, memory, num_threads);

  // A unit is a block of rows times a block of panels, as many as threads can share evenly.
  const int64_t row_units = units_of(task.rows, std::max(kUnitRowBytes / (4 * stride), int64_t{1}));
  const int64_t threads = std::max(num_threads, 1), pairs = units_of(task.num_panels, 2);
  const int64_t panel_units =
      std::min(units_of(units_of(task.num_panels, kUnitPanels), threads) * threads, pairs);
  parallel_for(num_threads, row_units * panel_units, [&](int64_t unit) {
    const int64_t row_unit = unit / panel_units, u = unit % panel_units;
    const int64_t begin = row_unit * task.rows / row_units, end = (row_unit + 1) * task.rows / row_units;
    const int64_t first = 2 * (u * pairs / panel_units);
    const int64_t last = std::min(2 * ((u + 1) * pairs / panel_units), task.num_panels);
    thread_local Scratch sums;
    QuantBlock block{};
    block.form = task.form;
    block.layout = layout;
    block.panel_bytes = task.blocks * layout.bytes;
    block.panels = task.panels + first * block.panel_bytes;
    block.inputs = padded;
    block.x = x + begin * stride;
    block.x_stride = stride;
    block.sums = reinterpret_cast<float*>(
        sums.reserve(static_cast<size_t>((end - begin) * kPanelOutputs * kPanelsTogether)));
    block.bias = task.bias == nullptr ? nullptr : task.bias + first * kPanelOutputs;
    block.out = task.out + begin * task.out_stride + first * kPanelOutputs / (swiglu ? 2 : 1);
    block.out_stride = task.out_stride;
    block.end = task.end;
    kernels.multiply(block, static_cast<int>(end - begin), static_cast<int>(last - first));
  });
}

}  // namespace tts
