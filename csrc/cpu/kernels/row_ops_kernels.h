// What one instruction-set level provides to row_ops.cpp: the small work of a decode step between its
// products. Plain data only, as in tree_attention_kernels.h.
#pragma once

#include <cstdint>

namespace tts {

struct RowKernels {
  // out[i] = x[i] / sqrt(mean of x^2 + eps) * weight[i]
  void (*rms_norm)(const float* x, const float* weight, int64_t n, float eps, float* out);
  // Rotary embedding of one head: out[i] = x[i] cos[i] - x[i + d/2] sin[i] for i < d/2, and out[i] = x[i]
  // cos[i] + x[i - d/2] sin[i] for the others.
  void (*rotate)(const float* x, const float* cos, const float* sin, int head_dim, float* out);
  // Rounded to nearest even.
  void (*to_bfloat16)(const float* x, int64_t n, uint16_t* out);
};

}  // namespace tts
