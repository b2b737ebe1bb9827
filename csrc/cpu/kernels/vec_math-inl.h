// Vector functions shared by several kernels. Included after a level's `Vec`, inside its anonymous namespace.
#pragma once

using F = Vec::F;

constexpr int kVecs = 16 / Vec::kLanes;  // vectors per column of 16 words

// 2^x for x <= 0 (a little above is fine) to about 1.3 ulp, 0 below 2^-125: no denormals. 2^0 is 1; NaN stays
// NaN.
inline F exp2_flushed(F x) {
  // The sum's low mantissa bits hold round(x) + 127, the exponent field of 2^round(x).
  const F magic = Vec::set1(12582912.0f + 127.0f);
  const F biased = Vec::add(x, magic);
  const F f = Vec::sub(x, Vec::sub(biased, magic));  // in [-1/2, 1/2]
  // Minimax fit of relative error with the constant term fixed at 1.
  F p = Vec::set1(0x1.5bb9f4p-10f);
  p = Vec::fma(p, f, Vec::set1(0x1.3cea84p-7f));
  p = Vec::fma(p, f, Vec::set1(0x1.c6b754p-5f));
  p = Vec::fma(p, f, Vec::set1(0x1.ebf9bcp-3f));
  p = Vec::fma(p, f, Vec::set1(0x1.62e42ap-1f));
  p = Vec::fma(p, f, Vec::set1(1.0f));
  return Vec::zero_below(x, Vec::set1(-125.0f), Vec::mul(p, Vec::bits_shifted_left(biased, 23)));
}

// 1 / (1 + e^-x)
inline F logistic(F x) {
  const F one = Vec::set1(1.0f), zero = Vec::set1(0.0f);
  const F e = exp2_flushed(Vec::mul(Vec::abs(x), Vec::set1(-1.44269504f)));  // e^-|x|
  const F share = Vec::add(e, Vec::zero_below(x, zero, Vec::sub(one, e)));   // 1, or e where x < 0
  return Vec::div(share, Vec::add(one, e));
}

inline F tanh_of(F x) {
  const F e = exp2_flushed(Vec::mul(Vec::abs(x), Vec::set1(-2.0f * 1.44269504f)));  // e^(-2|x|)
  const F one = Vec::set1(1.0f);
  return Vec::copy_sign(Vec::div(Vec::sub(one, e), Vec::add(one, e)), x);
}

// Largest of n floats, n a multiple of Vec::kLanes. Uses several chains, because one would wait for each
// maximum.
inline F largest_of(const uint32_t* s, int n) {
  constexpr int kChains = 4;
  F largest[kChains];
  for (int i = 0; i < kChains; ++i) largest[i] = Vec::set1(-__builtin_inff());
  int t = 0;
  for (; t + kChains * Vec::kLanes <= n; t += kChains * Vec::kLanes) {
    for (int i = 0; i < kChains; ++i) largest[i] = Vec::max(Vec::load(s + t + i * Vec::kLanes), largest[i]);
  }
  for (; t < n; t += Vec::kLanes) largest[0] = Vec::max(Vec::load(s + t), largest[0]);
  return Vec::max(Vec::max(largest[0], largest[1]), Vec::max(largest[2], largest[3]));
}
