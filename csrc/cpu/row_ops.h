// The small work of a decode step between its products, on float32 rows.
#pragma once

#include <cstdint>

#include "cpu/kv_layout.h"

namespace tts {

// out[row] = x[row] / rms(x[row]) * weight; rows of n channels, contiguous.
void rms_norm(const float* x, int64_t x_stride, const float* weight, int64_t rows, int64_t n, float eps,
              float* out, int num_threads);

// Queries, keys and values of T tokens as one product leaves them, side by side.
struct RotateTask {
  const float* qkv;  // [tokens, (num_q_heads + 2 num_kv_heads) head_dim]
  int64_t tokens, stride;
  int num_q_heads, num_kv_heads, head_dim;
  const float *cos, *sin;  // [tokens, head_dim]
  // [head_dim]: weights of an RMS norm of each head of q, of k, before it is rotated; null: none.
  const float *q_norm, *k_norm;
  float eps;        // of those norms
  DType dtype;      // of q, k and v
  void *q, *k, *v;  // [tokens, heads, head_dim]
};

// q and k normed and rotated by the tokens' positions, v as it is.
void rotate_qkv(const RotateTask& task, int num_threads);

}  // namespace tts
