// Kernels that an instruction-set level provides to row_ops.cpp: the small operations between the products of
// a decode step. Plain data only, as in tree_attention_kernels.h.
#pragma once

#include <cstdint>

namespace tts {

// Applied to the MLP's first product, or to its gate.
enum class Activation : int { kSilu, kGeluTanh, kGelu, kReluSquared };

// `out` may be the input, except for rotations.
struct RowKernels {
  // out[i] = x[i] / sqrt(mean of x^2 + eps) * weight[i]
  void (*rms_norm)(const float* x, const float* weight, int64_t n, float eps, float* out);
  // out[i] = (x[i] - mean) / sqrt(mean of (x - mean)^2 + eps) * weight[i] + bias[i]
  void (*layer_norm)(const float* x, const float* weight, const float* bias, int64_t n, float eps,
                     float* out);
  // Rotary embedding of one head: out[i] = x[i] cos[i] - x[i + d/2] sin[i] for i < d/2, and out[i] = x[i]
  // cos[i] + x[i - d/2] sin[i] for the others.
  void (*rotate)(const float* x, const float* cos, const float* sin, int head_dim, float* out);
  // Rotary embedding that pairs channel 2 i with channel 2 i + 1.
  void (*rotate_pairs)(const float* x, const float* cos, const float* sin, int head_dim, float* out);
  // out[i] = activation(gate[i]) * up[i], or activation(gate[i]) if up is null.
  void (*activate)(Activation activation, const float* gate, const float* up, int64_t n, float* out);
  // out[i] = (u + 1) g / (1 + e^(-alpha g)) with g = min(gate[i], limit) and u = up[i] clamped to +-limit.
  void (*clamped_swiglu)(const float* gate, const float* up, float alpha, float limit, int64_t n, float* out);
  // out[i] += x[i] * factor
  void (*add_scaled)(const float* x, float factor, int64_t n, float* out);
  // x[i] *= factor, then x[i] = cap tanh(x[i] / cap); cap 0: none.
  void (*scale_and_cap)(float factor, float cap, int64_t n, float* x);
  // Rounds to nearest even.
  void (*to_bfloat16)(const float* x, int64_t n, uint16_t* out);
};

}  // namespace tts
