// Packed weights, and the rows multiplied with them.
#pragma once

#include <cstdint>
#include <span>
#include <variant>

#include "cpu/kernels/packed_linear_kernels.h"
#include "cpu/kernels/quantised_linear_kernels.h"
#include "cpu/kv_layout.h"

namespace tts {

// [outputs / 16][inputs][16] floats or [outputs / 16][inputs / 2][16][2] bfloat16; the last panel is
// zero-padded.
struct FloatPanels {
  const void* data;
  DType dtype;
};

// [outputs / 16][blocks] blocks as QuantLayout describes them.
struct QuantPanels {
  const uint8_t* data;
  QuantForm form;
  int64_t blocks;      // per panel: as many as hold the inputs
  bool exact = false;  // do not round x: slow, for comparisons
  // [inputs]: input i of the panels is input order[i] of the weight; null: order[i] is i.
  const int32_t* order = nullptr;
};

// A weight [outputs, inputs] in panels of 16 outputs, borrowed.
struct Matrix {
  std::variant<FloatPanels, QuantPanels> panels;
  int64_t num_panels;
  const float* bias;   // [16 num_panels]; null: none
  bool gated = false;  // panel 2 i is the gate of outputs 16 i .. 16 i + 15, panel 2 i + 1 their up
};

// Number of outputs, including the padding of the last panel.
inline int64_t columns(const Matrix& weight) {
  return weight.num_panels * kPanelOutputs / (weight.gated ? 2 : 1);
}

// Total of weights side by side.
inline int64_t columns(std::span<const Matrix> weights) {
  int64_t sum = 0;
  for (const Matrix& weight : weights) sum += columns(weight);
  return sum;
}

struct LinearRows {
  const void* data;  // [count, inputs] float32 or bfloat16, contiguous channels
  DType dtype;
  int64_t count, inputs, stride;
};

struct LinearOut {
  float* data;  // [rows, columns]
  int64_t stride;
  bool add;  // add to the values already there
};

// Product with one weight.
struct LinearTask {
  LinearRows x;
  const Matrix& weight;
  float* out;
  int64_t out_stride;
  LinearEnd end;
};

}  // namespace tts
