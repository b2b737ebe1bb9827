// The small operations between the products of a decode step, on float32 rows.
#pragma once

#include <cstdint>

#include "cpu/kernels/row_ops_kernels.h"
#include "cpu/kv_layout.h"

namespace tts {

// A norm of rows of n channels.
struct Norm {
  const float* weight = nullptr;  // [n]; null: no norm
  bool centred = false;           // a LayerNorm, whose bias [n] follows the weight; false: an RMS norm
};

// Rows of n contiguous channels; x and out may have any row stride. out may be x.
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

// out[row] += norm(x[row]) * factor; x: [rows, n], overwritten.
void add_rows(float* x, const Norm& norm, float eps, float factor, int64_t rows, int64_t n, float* out,
              int num_threads);

// x[row] = activation(x[row]), or, if gated, activation(x[row]) * x[row][n..2 n). Rows of n channels at
// `stride`.
void activate_rows(Activation activation, bool gated, float* x, int64_t stride, int64_t rows, int64_t n,
                   int num_threads);

// x[row] = (u + 1) g sigmoid(alpha g), where g = min(x[row], limit) and u is x[row][n..2 n) clamped to
// +-limit.
void clamped_swiglu_rows(float alpha, float limit, float* x, int64_t stride, int64_t rows, int64_t n,
                         int num_threads);

// x *= factor, then x = c tanh(x / c) if c = cap > 0; rows of n channels at `stride`.
void scale_and_cap_rows(float factor, float cap, float* x, int64_t stride, int64_t rows, int64_t n,
                        int num_threads);

// Queries, keys and values of each token, side by side as one product writes them.
struct RotateTask {
  const float* qkv;  // [tokens, (num_q_heads + 2 num_kv_heads) head_dim]
  int64_t tokens, stride;
  int num_q_heads, num_kv_heads, head_dim;
  const float *cos, *sin;  // [tokens, rotary_dim]
  // [head_dim]: weights of the RMS norm of each head of q, and of k, before rotation; null: none.
  const float *q_norm, *k_norm;
  float eps;        // of those norms
  DType dtype;      // of q, k and v
  void *q, *k, *v;  // [tokens, heads, head_dim]
  int rotary_dim;   // number of leading channels of a head to rotate; even; 0: none
  bool pairs;       // channel 2 i pairs with 2 i + 1; false: i with i + rotary_dim / 2
};

// Writes q and k, normed and rotated by the tokens' positions, and v unchanged.
void rotate_qkv(const RotateTask& task, int num_threads);

}  // namespace tts
