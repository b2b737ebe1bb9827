// The arithmetic of row_ops.
#pragma once

#include "cpu/kernels/vec_math-inl.h"

inline void rms_norm(const float* x, const float* weight, int64_t n, float eps, float* out) {
  F sum = Vec::set1(0.0f);
  int64_t i = 0;
  for (; i + Vec::kLanes <= n; i += Vec::kLanes) {
    const F value = Vec::load(x + i);
    sum = Vec::fma(value, value, sum);
  }
  float squares = Vec::sum(sum);
  for (int64_t j = i; j < n; ++j) squares += x[j] * x[j];
  const float scale = 1.0f / __builtin_sqrtf(squares / static_cast<float>(n) + eps);
  const F scales = Vec::set1(scale);
  for (i = 0; i + Vec::kLanes <= n; i += Vec::kLanes) {
    Vec::store(out + i, Vec::mul(Vec::mul(Vec::load(x + i), scales), Vec::load(weight + i)));
  }
  for (; i < n; ++i) out[i] = x[i] * scale * weight[i];
}

inline void rotate(const float* x, const float* cos, const float* sin, int head_dim, float* out) {
  const int half = head_dim / 2;
  for (int i = 0; i < half; ++i) out[i] = x[i] * cos[i] - x[i + half] * sin[i];
  for (int i = half; i < head_dim; ++i) out[i] = x[i] * cos[i] + x[i - half] * sin[i];
}

inline void to_bfloat16(const float* x, int64_t n, uint16_t* out) {
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits;
    __builtin_memcpy(&bits, x + i, sizeof(bits));
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    out[i] = static_cast<uint16_t>(nan ? (bits >> 16) | 0x40u : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
  }
}

constexpr RowKernels row_kernels() { return {rms_norm, rotate, to_bfloat16}; }
