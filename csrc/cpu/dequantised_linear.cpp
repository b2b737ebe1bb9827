#include "cpu/dequantised_linear.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "cpu/dequantise_rows.h"
#include "cpu/packed_linear.h"
#include "cpu/quantised_linear.h"
#include "cpu/runtime/scratch.h"

namespace tts {
namespace {

constexpr int64_t kUnitPanels = 2;  // even: gate and up stay together

// Repacks rows [16 panels, inputs] into panels [panels][inputs][16].
void put_in_panels(const float* rows, int64_t inputs, int64_t panels, float* out) {
  for (int64_t panel = 0; panel < panels; ++panel) {
    const float* const from = rows + panel * kPanelOutputs * inputs;
    float* const to = out + panel * kPanelOutputs * inputs;
    for (int64_t input = 0; input < inputs; ++input) {
      for (int64_t lane = 0; lane < kPanelOutputs; ++lane) {
        to[input * kPanelOutputs + lane] = from[lane * inputs + input];
      }
    }
  }
}

}  // namespace

DequantisedLinear::DequantisedLinear(const LinearTask& task, const QuantPanels& panels)
    : task_(task), panels_(panels), panel_bytes_(panels.blocks * layout_for(panels, task.x.inputs).bytes) {}

int64_t DequantisedLinear::units() const { return (task_.weight.num_panels + kUnitPanels - 1) / kUnitPanels; }

void DequantisedLinear::multiply(int64_t unit, const uint32_t*) const {
  const int64_t first = unit * kUnitPanels, inputs = task_.x.inputs;
  const int64_t panels = std::min(kUnitPanels, task_.weight.num_panels - first);
  const auto words = static_cast<size_t>(panels * kPanelOutputs * inputs);
  thread_local Scratch memory, converted;
  auto* const rows = reinterpret_cast<float*>(memory.reserve(2 * words));
  float* const weights = rows + words;
  std::vector<int64_t> indices(static_cast<size_t>(panels * kPanelOutputs));
  std::iota(indices.begin(), indices.end(), int64_t{0});
  QuantPanels part = panels_;
  part.data += first * panel_bytes_;
  dequantise_rows(part, indices.data(), static_cast<int64_t>(indices.size()), inputs, rows, 1);
  put_in_panels(rows, inputs, panels, weights);

  const FloatPanels floats{weights, DType::kFloat32};
  const float* const bias =
      task_.weight.bias == nullptr ? nullptr : task_.weight.bias + first * kPanelOutputs;
  const Matrix weight{floats, panels, bias, task_.weight.gated};
  float* const out = task_.out + first * kPanelOutputs / (task_.weight.gated ? 2 : 1);
  const PackedLinear product({task_.x, weight, out, task_.out_stride, task_.end}, floats, 1);
  uint32_t* const x = converted.reserve(static_cast<size_t>(product.row_words()));
  for (int64_t band = 0; band < product.bands(); ++band) product.convert(band, x);
  for (int64_t i = 0; i < product.units(); ++i) product.multiply(i, x);
}

}  // namespace tts
