// The small work of a decode step between its products, on float32 rows.
#pragma once

#include <cstdint>

#include "cpu/kernels/row_ops_kernels.h"
#include "cpu/kv_layout.h"

namespace tts {

// Of rows of n channels.
struct Norm {
  const float* weight = nullptr;  // [n]; null: no norm
  bool centred = false;           // a LayerNorm, whose bias [n] lies behind the weight; false: an RMS norm
};

// Rows of n channels, contiguous; the rows of x and out at any stride. out may be x.
struct NormTask {
  const float* x;
  int64_t x_stride;
  Norm norm;
  int64_t rows, n;
  float eps;
  float* out;
  int64_t out_stride;
};

void norm_rows(const NormTask& task, int num_threads);

// out[row] += norm(x[row]) * factor; x: [rows, n], left with any values.
void add_rows(float* x, const Norm& norm, float eps, float factor, int64_t rows, int64_t n, float* out,
              int num_threads);

// x[row] = activation(x[row]), or, gated, activation(x[row]) * x[row][n..2 n). Rows of n channels at a
// stride.
void activate_rows(Activation activation, bool gated, float* x, int64_t stride, int64_t rows, int64_t n,
                   int num_threads);

// x[row] = (u + 1) g sigmoid(alpha g), where g = min(x[row], limit) and u is x[row][n..2 n) cut to +-limit.
void clamped_swiglu_rows(float alpha, float limit, float* x, int64_t stride, int64_t rows, int64_t n,
                         int num_threads);

// x *= factor, then c tanh(x / c) where c = cap > 0; rows of n channels at a stride.
void scale_and_cap_rows(float factor, float cap, float* x, int64_t stride, int64_t rows, int64_t n,
                        int num_threads);

// Queries, keys and values of T tokens as one product leaves them, side by side.
struct RotateTask {
  const float* qkv;  // [tokens, (num_q_heads + 2 num_kv_heads) head_dim]
  int64_t tokens, stride;
  int num_q_heads, num_kv_heads, head_dim;
  const float *cos, *sin;  // [tokens, rotary_dim]
  // [head_dim]: weights of an RMS norm of each head of q, of k, before it is rotated; null: none.
  const float *q_norm, *k_norm;
  float eps;        // of those norms
  DType dtype;      // of q, k and v
  void *q, *k, *v;  // [tokens, heads, head_dim]
  int rotary_dim;   // first channels of a head, which are rotated; even, 0: none are
  bool pairs;       // channel 2 i turns with 2 i + 1; false: i with i + rotary_dim / 2
};

// q and k normed and rotated by the tokens' positions, v as it is.
void rotate_qkv(const RotateTask& task, int num_threads);

}  // namespace tts
