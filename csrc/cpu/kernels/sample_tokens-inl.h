// The arithmetic of sample_tokens.
#pragma once

#include "cpu/kernels/vec_math-inl.h"

// Loads floats from x[i] on, -inf from index n on.
inline F load_padded(const float* x, int64_t i, int64_t n) {
  if (i + Vec::kLanes <= n) return Vec::load(x + i);
  float tail[Vec::kLanes];
  for (int j = 0; j < Vec::kLanes; ++j) tail[j] = i + j < n ? x[i + j] : -__builtin_inff();
  return Vec::load(tail);
}

inline float largest(const float* x, int64_t n) {
  F most[4];
  for (F& part : most) part = Vec::set1(-__builtin_inff());
  int64_t i = 0;
  for (; i + 4 * Vec::kLanes <= n; i += 4 * Vec::kLanes) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) most[j] = Vec::max(Vec::load(x + i + j * Vec::kLanes), most[j]);
  }
  for (; i < n; i += Vec::kLanes) most[0] = Vec::max(load_padded(x, i, n), most[0]);
  return Vec::max_of(Vec::max(Vec::max(most[0], most[1]), Vec::max(most[2], most[3])));
}

// x - peak. -inf becomes finite, because 0 times it must be 0; NaN stays.
inline F shifted(F x, F peak) { return Vec::max(Vec::set1(-1e30f), Vec::sub(x, peak)); }

inline F weight(F x, F difference, F scale, F cut) {
  return Vec::zero_below(x, cut, exp2_flushed(Vec::mul(difference, scale)));
}

inline double weigh(const float* x, int64_t n, float peak, float scale, float cut, float* sums) {
  const F peaks = Vec::set1(peak), scales = Vec::set1(scale), cuts = Vec::set1(cut);
  double weighted = 0;
  for (int64_t begin = 0; begin < n; begin += kSampleBlock, ++sums) {
    const int64_t end = begin + kSampleBlock < n ? begin + kSampleBlock : n;
    F sum = Vec::set1(0.0f), product = Vec::set1(0.0f);
    for (int64_t i = begin; i < end; i += Vec::kLanes) {
      const F value = load_padded(x, i, n), difference = shifted(value, peaks);
      const F w = weight(value, difference, scales, cuts);
      sum = Vec::add(sum, w);
      product = Vec::fma(w, difference, product);
    }
    *sums = Vec::sum(sum);
    weighted += static_cast<double>(Vec::sum(product));
  }
  return weighted;
}

inline void weights(const float* x, int64_t n, float peak, float scale, float cut, float* w) {
  const F peaks = Vec::set1(peak), scales = Vec::set1(scale), cuts = Vec::set1(cut);
  for (int64_t i = 0; i < n; i += Vec::kLanes) {
    const F value = load_padded(x, i, n);
    const F result = weight(value, shifted(value, peaks), scales, cuts);
    if (i + Vec::kLanes <= n) {
      Vec::store(w + i, result);
    } else {
      float tail[Vec::kLanes];
      Vec::store(tail, result);
      for (int64_t j = i; j < n; ++j) w[j] = tail[j - i];
    }
  }
}

constexpr SampleKernels sample_kernels() { return {largest, weigh, weights}; }
