#include "cpu/quantised_linear.h"

#include <algorithm>
#include <vector>

#include "common/error.h"
#include "cpu/runtime/bfloat16.h"
#include "cpu/runtime/isa.h"
#include "cpu/runtime/scratch.h"

namespace tts {
namespace {

// Bytes of x, which a unit rereads for each pair of panels: part of an L2 cache.
constexpr int64_t kUnitRowBytes = 1 << 20;
constexpr int64_t kUnitPanels = 8;

int64_t units_of(int64_t n, int64_t size) { return (n + size - 1) / size; }

// out[i] = input(order[i]), or input(i) without an order.
template <class Input>
void take(int64_t inputs, const int32_t* order, const Input& input, float* out) {
  if (order == nullptr) {
    for (int64_t i = 0; i < inputs; ++i) out[i] = input(i);
  } else {
    for (int64_t i = 0; i < inputs; ++i) out[i] = input(order[i]);
  }
}

// Inputs of a converted row including padding, which covers what blocks of any form may read.
int64_t padded(int64_t inputs) { return units_of(inputs, kChunkInputs) * kChunkInputs; }

}  // namespace

QuantLayout quant_layout(const QuantForm& form) {
  const int largest = form.has_table ? *std::max_element(form.table, form.table + 16) : (1 << form.bits) - 1;
  require(form.bits == 4 || form.bits == 5 || form.bits == 6 || form.bits == 8, "form: got ", form.bits,
          " bits, expected 4, 5, 6 or 8");
  require(form.group == 16 || form.group == 32, "form: got groups of ", form.group, ", expected 16 or 32");
  require(form.offset >= 0 && form.offset <= 128 && largest - form.offset <= 127, "form: got values up to ",
          largest, " less ", form.offset, ", expected what an int8 holds");
  require(!form.has_min || form.offset == 0, "form: got an offset beside minima, expected one of the two");
  require(!form.has_min || !form.has_zeros, "form: got minima beside zero points, expected one of the two");
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

QuantLayout layout_for(const QuantPanels& panels, int64_t inputs) {
  require(inputs > 0 && inputs % kXGroup == 0, "x: got ", inputs, " inputs, expected a multiple of ",
          kXGroup);
  const QuantLayout layout = quant_layout(panels.form);
  require(panels.blocks == units_of(inputs, layout.inputs), "weight: got ", panels.blocks, " blocks of ",
          layout.inputs, " inputs, expected ", units_of(inputs, layout.inputs), " for ", inputs);
  if (panels.order != nullptr) {
    const auto [least, most] = std::minmax_element(panels.order, panels.order + inputs);
    require(*least >= 0 && *most < inputs, "order: got ", *least, " to ", *most, ", expected 0 <= input < ",
            inputs);
  }
  return layout;
}

QuantisedLinear::QuantisedLinear(const LinearTask& task, const QuantPanels& panels, int num_threads)
    : task_(task),
      panels_(panels),
      layout_(layout_for(panels, task.x.inputs)),
      kernels_(&cpu_isa().kernels.quantised) {
  const int64_t inputs = task.x.inputs, num_panels = task.weight.num_panels;
  // Odd, so that rows do not share cache sets.
  stride_ = (padded(inputs) / kXGroup | 1) * kernels_->group_words;

  // A unit is a block of rows times a block of panels; their number lets threads share them evenly.
  row_units_ = units_of(task.x.count, std::max(kUnitRowBytes / (4 * stride_), int64_t{1}));
  const int64_t threads = std::max(num_threads, 1);
  panel_units_ =
      std::min(units_of(units_of(num_panels, kUnitPanels), threads) * threads, units_of(num_panels, 2));
}

bool QuantisedLinear::shares_rows(const QuantisedLinear& other) const {
  const int32_t *order = panels_.order, *others = other.panels_.order;
  const bool same_order = order == others || (order != nullptr && others != nullptr &&
                                              std::equal(order, order + task_.x.inputs, others));
  return same_order && panels_.form.group == other.panels_.form.group &&
         panels_.form.offset == other.panels_.form.offset;
}

void QuantisedLinear::convert(int64_t row, uint32_t* rows) const {
  const int64_t inputs = task_.x.inputs, at = row * task_.x.stride;
  const float* x = static_cast<const float*>(task_.x.data) + at;
  thread_local std::vector<float> taken;
  const bool bfloat16 = task_.x.dtype == DType::kBFloat16;
  if (bfloat16 || panels_.order != nullptr) {
    taken.resize(static_cast<size_t>(inputs));
    if (bfloat16) {
      const auto* halves = static_cast<const uint16_t*>(task_.x.data) + at;
      take(inputs, panels_.order, [&](int64_t i) { return widen_bfloat16(halves[i]); }, taken.data());
    } else {
      take(inputs, panels_.order, [&](int64_t i) { return x[i]; }, taken.data());
    }
    x = taken.data();
  }
  kernels_->quantise(x, inputs, padded(inputs), panels_.form.group, panels_.form.offset,
                     rows + row * stride_);
}

void QuantisedLinear::multiply(int64_t unit, const uint32_t* rows) const {
  const int64_t row_unit = unit / panel_units_, u = unit % panel_units_, count = task_.x.count;
  const int64_t begin = row_unit * count / row_units_, end = (row_unit + 1) * count / row_units_;
  const int64_t num_panels = task_.weight.num_panels, pairs = units_of(num_panels, 2);
  const int64_t first = 2 * (u * pairs / panel_units_);
  const int64_t last = std::min(2 * ((u + 1) * pairs / panel_units_), num_panels);
  thread_local Scratch sums;
  QuantBlock block{};
  block.form = panels_.form;
  block.layout = layout_;
  block.panel_bytes = panels_.blocks * layout_.bytes;
  block.panels = panels_.data + first * block.panel_bytes;
  block.inputs = panels_.blocks * layout_.inputs;
  block.x = rows + begin * stride_;
  block.x_stride = stride_;
  block.sums = reinterpret_cast<float*>(
      sums.reserve(static_cast<size_t>((end - begin) * kPanelOutputs * kPanelsTogether)));
  block.bias = task_.weight.bias == nullptr ? nullptr : task_.weight.bias + first * kPanelOutputs;
  block.out = task_.out + begin * task_.out_stride +
              first * kPanelOutputs / (task_.end == LinearEnd::kSwiGLU ? 2 : 1);
  block.out_stride = task_.out_stride;
  block.end = task_.end;
  kernels_->multiply(block, static_cast<int>(end - begin), static_cast<int>(last - first));
}

}  // namespace tts
