// 256-bit vectors of floats with FMA.
#pragma once

#include "cpu/levels/vec_base-inl.h"

struct Vec : VecBase {
  using F = __m256;
  static constexpr int kLanes = 8;
  // 6 x 2 vectors of sums (a column is two vectors) + 2 operands + 1 broadcast of the 16 registers.
  static constexpr int kRows = 6, kColumns = 1;

  static F set1(float x) { return _mm256_set1_ps(x); }
  static F load(const void* p) { return _mm256_loadu_ps(static_cast<const float*>(p)); }
  static F load_int8(const int8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
  static void store(void* p, F x) { _mm256_storeu_ps(static_cast<float*>(p), x); }
  static F broadcast(const uint32_t* word) {
    return _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(*word)));
  }

  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }  // b if either is NaN
  static float sum(F x) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
  }
  static float max_of(F x) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
  }

  static F abs(F x) { return _mm256_andnot_ps(set1(-0.0f), x); }
  static F copy_sign(F magnitude, F sign) {
    return _mm256_or_ps(magnitude, _mm256_and_ps(sign, set1(-0.0f)));
  }
  static F bits_shifted_left(F x, int n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(x), n));
  }
  // x where not (test < bound), else 0; keeps x where test is NaN.
  static F zero_below(F test, F bound, F x) {
    return _mm256_and_ps(_mm256_cmp_ps(test, bound, _CMP_NLT_UQ), x);
  }

  // The two bfloat16 of each word as floats: bits 0..15, bits 16..31.
  static F low_half(F words) { return bits_shifted_left(words, 16); }
  static F high_half(F words) { return _mm256_and_ps(words, _mm256_castsi256_ps(_mm256_set1_epi32(-65536))); }
};
