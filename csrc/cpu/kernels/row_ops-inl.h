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

inline void layer_norm(const float* x, const float* weight, const float* bias, int64_t n, float eps,
                       float* out) {
  F sum = Vec::set1(0.0f);
  int64_t i = 0;
  for (; i + Vec::kLanes <= n; i += Vec::kLanes) sum = Vec::add(sum, Vec::load(x + i));
  float mean = Vec::sum(sum);
  for (int64_t j = i; j < n; ++j) mean += x[j];
  mean /= static_cast<float>(n);
  const F means = Vec::set1(mean);
  sum = Vec::set1(0.0f);
  for (i = 0; i + Vec::kLanes <= n; i += Vec::kLanes) {
    const F value = Vec::sub(Vec::load(x + i), means);
    sum = Vec::fma(value, value, sum);
  }
  float squares = Vec::sum(sum);
  for (int64_t j = i; j < n; ++j) squares += (x[j] - mean) * (x[j] - mean);
  const float scale = 1.0f / __builtin_sqrtf(squares / static_cast<float>(n) + eps);
  const F scales = Vec::set1(scale);
  for (i = 0; i + Vec::kLanes <= n; i += Vec::kLanes) {
    const F value = Vec::mul(Vec::sub(Vec::load(x + i), means), scales);
    Vec::store(out + i, Vec::add(Vec::mul(value, Vec::load(weight + i)), Vec::load(bias + i)));
  }
  for (; i < n; ++i) out[i] = (x[i] - mean) * scale * weight[i] + bias[i];
}

inline void rotate(const float* x, const float* cos, const float* sin, int head_dim, float* out) {
  const int half = head_dim / 2;
  for (int i = 0; i < half; ++i) out[i] = x[i] * cos[i] - x[i + half] * sin[i];
  for (int i = half; i < head_dim; ++i) out[i] = x[i] * cos[i] + x[i - half] * sin[i];
}

inline void rotate_pairs(const float* x, const float* cos, const float* sin, int head_dim, float* out) {
  for (int i = 0; i < head_dim; i += 2) {
    out[i] = x[i] * cos[i] - x[i + 1] * sin[i];
    out[i + 1] = x[i + 1] * cos[i + 1] + x[i] * sin[i + 1];
  }
}

// Calls body(i, lanes) for vectors of n floats. The last floats go through a padded copy, so that an
// element's bits do not depend on its place in the row.
template <class Body>
inline void for_vectors(int64_t n, const Body& body) {
  int64_t i = 0;
  for (; i + Vec::kLanes <= n; i += Vec::kLanes) body(i, Vec::kLanes);
  if (i < n) body(i, static_cast<int>(n - i));
}

inline F load_some(const float* x, int lanes) {
  if (lanes == Vec::kLanes) return Vec::load(x);
  float padded[Vec::kLanes] = {};
  for (int i = 0; i < lanes; ++i) padded[i] = x[i];
  return Vec::load(padded);
}

inline void store_some(float* out, int lanes, F x) {
  if (lanes == Vec::kLanes) return Vec::store(out, x);
  float padded[Vec::kLanes];
  Vec::store(padded, x);
  for (int i = 0; i < lanes; ++i) out[i] = padded[i];
}

// Hendrycks and Gimpel, arXiv 1606.08415: x / 2 (1 + tanh u) = x / (1 + e^-2u), where u = sqrt(2 / pi) (x +
// 0.044715 x^3).
inline F gelu_tanh(F x) {
  const F inner = Vec::fma(Vec::mul(Vec::mul(x, x), x), Vec::set1(0.044715f), x);
  return Vec::mul(x, logistic(Vec::mul(inner, Vec::set1(1.59576912f))));
}

// x Phi(x) = max(x, 0) - |x| erfc(|x| / sqrt 2) / 2, with erfc to 1.5e-7: Abramowitz and Stegun, 7.1.26.
// Beyond 16 the second term vanishes; a NaN stays NaN.
inline F gelu(F x) {
  const F one = Vec::set1(1.0f), minus = Vec::set1(-1.0f);
  const F size = Vec::mul(minus, Vec::max(Vec::set1(-16.0f), Vec::mul(minus, Vec::abs(x))));
  const F t = Vec::div(one, Vec::fma(size, Vec::set1(0.3275911f * 0.70710678f), one));
  F p = Vec::fma(t, Vec::set1(1.061405429f), Vec::set1(-1.453152027f));
  p = Vec::fma(p, t, Vec::set1(1.421413741f));
  p = Vec::fma(p, t, Vec::set1(-0.284496736f));
  p = Vec::fma(p, t, Vec::set1(0.254829592f));
  const F e = exp2_flushed(Vec::mul(Vec::mul(size, size), Vec::set1(-0.5f * 1.44269504f)));
  const F erfc = Vec::mul(Vec::mul(p, t), e);
  return Vec::fma(Vec::mul(size, Vec::set1(-0.5f)), erfc, Vec::max(Vec::set1(0.0f), x));
}

// So et al., arXiv 2109.08668. A NaN stays NaN.
inline F relu_squared(F x) {
  const F cut = Vec::max(Vec::set1(0.0f), x);
  return Vec::mul(cut, cut);
}

template <Activation kActivation>
inline F activated(F x) {
  if constexpr (kActivation == Activation::kSilu) return Vec::mul(x, logistic(x));
  if constexpr (kActivation == Activation::kGeluTanh) return gelu_tanh(x);
  if constexpr (kActivation == Activation::kGelu) return gelu(x);
  return relu_squared(x);
}

template <Activation kActivation>
inline void activate_with(const float* gate, const float* up, int64_t n, float* out) {
  for_vectors(n, [&](int64_t i, int lanes) {
    const F made = activated<kActivation>(load_some(gate + i, lanes));
    store_some(out + i, lanes, up == nullptr ? made : Vec::mul(made, load_some(up + i, lanes)));
  });
}

inline void activate(Activation activation, const float* gate, const float* up, int64_t n, float* out) {
  switch (activation) {
    case Activation::kSilu:
      return activate_with<Activation::kSilu>(gate, up, n, out);
    case Activation::kGeluTanh:
      return activate_with<Activation::kGeluTanh>(gate, up, n, out);
    case Activation::kGelu:
      return activate_with<Activation::kGelu>(gate, up, n, out);
    case Activation::kReluSquared:
      return activate_with<Activation::kReluSquared>(gate, up, n, out);
  }
}

// The experts of gpt-oss (arXiv 2508.10925). A NaN stays NaN.
inline void clamped_swiglu(const float* gate, const float* up, float alpha, float limit, int64_t n,
                           float* out) {
  const F one = Vec::set1(1.0f), minus = Vec::set1(-1.0f), lowest = Vec::set1(-limit);
  const F alphas = Vec::set1(alpha);
  const auto cut = [&](F x) { return Vec::mul(minus, Vec::max(lowest, Vec::mul(minus, x))); };
  for_vectors(n, [&](int64_t i, int lanes) {
    const F g = cut(load_some(gate + i, lanes));
    const F u = cut(Vec::max(lowest, load_some(up + i, lanes)));
    const F glu = Vec::mul(g, logistic(Vec::mul(alphas, g)));
    store_some(out + i, lanes, Vec::mul(Vec::add(u, one), glu));
  });
}

inline void add_scaled(const float* x, float factor, int64_t n, float* out) {
  const F factors = Vec::set1(factor);
  for_vectors(n, [&](int64_t i, int lanes) {
    const F scaled = Vec::mul(load_some(x + i, lanes), factors);
    store_some(out + i, lanes, Vec::add(load_some(out + i, lanes), scaled));
  });
}

inline void scale_and_cap(float factor, float cap, int64_t n, float* x) {
  const F factors = Vec::set1(factor), caps = Vec::set1(cap);
  for_vectors(n, [&](int64_t i, int lanes) {
    F value = Vec::mul(load_some(x + i, lanes), factors);
    if (cap > 0.0f) value = Vec::mul(caps, tanh_of(Vec::div(value, caps)));
    store_some(x + i, lanes, value);
  });
}

inline void to_bfloat16(const float* x, int64_t n, uint16_t* out) {
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits;
    __builtin_memcpy(&bits, x + i, sizeof(bits));
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    out[i] = static_cast<uint16_t>(nan ? (bits >> 16) | 0x40u : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
  }
}

constexpr RowKernels row_kernels() {
  return {rms_norm,       layer_norm, rotate,        rotate_pairs, activate,
          clamped_swiglu, add_scaled, scale_and_cap, to_bfloat16};
}
