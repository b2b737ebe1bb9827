// Rows of x in the form that products with quantised weights read. Each group of 32 inputs has the words of
// its integers, as `Ints` reads them, then
//   its scale, a float
//   [32 / group of the weights] where sums of products begin: -offset times the sum of x, for Ints::start
//   [32 / group] scale times the sum of x, which multiplies the minima
//   [32 / group] at levels that read large bytes less 128, where their sums begin: (128 - offset) times the
//                sum of x
// so that one address per row leads to all of it.
#pragma once

#include "cpu/kernels/vec_math-inl.h"

constexpr int kScaleAt = kXGroup / 4 * Ints::kXWords;
constexpr int kStartAt = kScaleAt + 1, kShareAt = kStartAt + 2, kSignedStartAt = kShareAt + 2;
constexpr int kGroupWords = kScaleAt + 8;

inline void store_float(float x, uint32_t* out) { __builtin_memcpy(out, &x, sizeof(x)); }

// x is scale * q + rest with |q| <= 127. A group with a NaN or an infinity gets the scale NaN, so the row's
// results are NaN; a group below 2^-100 counts as zeros.
inline void quantise_group(const float* x, int group, int offset, uint32_t* out) {
  constexpr int kParts = kXGroup / Vec::kLanes, kHalf = kParts / 2;
  const F zero = Vec::set1(0.0f);
  F largest = zero, broken = zero;
  for (int i = 0; i < kParts; ++i) {
    const F part = Vec::load(x + i * Vec::kLanes);
    largest = Vec::max(Vec::abs(part), largest);
    broken = Vec::add(broken, Vec::mul(part, zero));
  }
  float most = Vec::max_of(largest), scale = 0.0f, inverse = 0.0f;
  const bool sound = Vec::sum(broken) == 0.0f;
  if (!sound) {
    scale = __builtin_nanf("");
  } else if (most >= 0x1p-100f) {
    scale = most / 127.0f;
    inverse = 127.0f / most;
  }
  store_float(scale, out + kScaleAt);
  float sums[2];
  for (int half = 0; half < 2; ++half) {
    F sum = zero;
    for (int i = half * kHalf; i < (half + 1) * kHalf; ++i) {
      const F magic = Vec::set1(12582912.0f);  // 3 * 2^22: adding it rounds a small number to an integer
      const F part = sound ? Vec::mul(Vec::load(x + i * Vec::kLanes), Vec::set1(inverse)) : zero;
      const F whole = Vec::sub(Vec::add(part, magic), magic);
      Ints::store_x(whole, i * Vec::kLanes, out);
      sum = Vec::add(sum, whole);
    }
    sums[half] = Vec::sum(sum);
  }
  if (group == kXGroup) sums[0] += sums[1];
  for (int half = 0; half < kXGroup / group; ++half) {
    out[kStartAt + half] = Ints::start_word(static_cast<float>(-offset) * sums[half]);
    store_float(scale * sums[half], out + kShareAt + half);
    if constexpr (Ints::kBySize) {
      out[kSignedStartAt + half] = Ints::start_word(static_cast<float>(128 - offset) * sums[half]);
    }
  }
}

inline void quantise_row(const float* x, int64_t inputs, int64_t padded, int group, int offset,
                         uint32_t* out) {
  int64_t i = 0;
  for (; i < inputs; i += kXGroup, out += kGroupWords) quantise_group(x + i, group, offset, out);
  for (; i < padded; i += kXGroup, out += kGroupWords) {
    for (int word = 0; word < kGroupWords; ++word) out[word] = 0;
  }
}
