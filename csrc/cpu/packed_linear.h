// Products of few rows with a matrix of weights that was packed once: out = x W^T.
#pragma once

#include <cstdint>

#include "cpu/kernels/packed_linear_kernels.h"
#include "cpu/kv_layout.h"

namespace tts {

// Packed weights are panels of 16 outputs, [outputs / 16][inputs][16] floats or
// [outputs / 16][inputs / 2][16][2] bfloat16, the last panel filled up with zeros. For kSwiGLU panel 2 i is
// the gate of outputs 16 i .. 16 i + 15 and panel 2 i + 1 their up.
struct PackedLinearTask {
  const void* x;  // [rows, inputs] float32 or bfloat16, contiguous channels
  DType x_dtype;
  int64_t rows, inputs, x_stride;
  const void* weight;
  DType weight_dtype;
  int64_t num_panels;
  const float* bias;  // [16 num_panels]; null: none
  float* out;         // [rows, 16 num_panels], or half as many columns for kSwiGLU
  int64_t out_stride;
  LinearEnd end;
};

// Throws ArgumentError where sizes do not fit. An output's bits depend on its row and its weights only.
void packed_linear(const PackedLinearTask& task, int num_threads);

}  // namespace tts
