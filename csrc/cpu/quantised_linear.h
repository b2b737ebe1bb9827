// Products of rows with a matrix of quantised weights that was packed once: out = x W^T.
#pragma once

#include <cstdint>

#include "cpu/kernels/quantised_linear_kernels.h"
#include "cpu/kv_layout.h"

namespace tts {

// Throws ArgumentError where the form is none that kernels serve.
QuantLayout quant_layout(const QuantForm& form);

// Panels of 16 outputs follow each other, [num_panels][blocks] blocks as QuantLayout describes them; for
// kSwiGLU gate and up take turns, as in packed_linear.h.
struct QuantisedLinearTask {
  const void* x;  // [rows, inputs] float32 or bfloat16, contiguous channels
  DType x_dtype;
  int64_t rows, inputs, x_stride;  // inputs: a multiple of 32
  QuantForm form;
  const uint8_t* panels;
  int64_t num_panels, blocks;  // blocks of a panel: as many as hold the inputs
  const float* bias;           // [16 num_panels]; null: none
  float* out;                  // [rows, 16 num_panels], or half as many columns for kSwiGLU
  int64_t out_stride;
  LinearEnd end;
};

// A row of x becomes int8, with a scale for each 32 inputs. Throws ArgumentError where sizes do not fit. An
// output's bits depend on its row and its weights only.
void quantised_linear(const QuantisedLinearTask& task, int num_threads);

}  // namespace tts
