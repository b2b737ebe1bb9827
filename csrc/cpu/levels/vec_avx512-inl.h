// 512-bit vectors of floats; the avx512_bf16 level defines TTS_DOT_PAIRS before including this.
#pragma once

struct Vec {
  using F = __m512;
  static constexpr int kLanes = 16;
  // 6 x 4 sums + 4 operands + 1 broadcast of the 32 registers.
  static constexpr int kRows = 6, kColumns = 4;

  static F set1(float x) { return _mm512_set1_ps(x); }
  static F load(const void* p) { return _mm512_loadu_ps(p); }
  static F load_int8(const int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  static void store(void* p, F x) { _mm512_storeu_ps(p, x); }
  static F broadcast(const uint32_t* word) {
    return _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(*word)));
  }

  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }  // b if either is NaN
  static float sum(F x) { return _mm512_reduce_add_ps(x); }
  static float max_of(F x) { return _mm512_reduce_max_ps(x); }

  static F abs(F x) { return _mm512_abs_ps(x); }
  static F copy_sign(F magnitude, F sign) {
    return _mm512_or_ps(magnitude, _mm512_and_ps(sign, set1(-0.0f)));
  }
  static F bits_shifted_left(F x, int n) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(x), static_cast<unsigned>(n)));
  }
  // x where not (test < bound), else 0; keeps x where test is NaN.
  static F zero_below(F test, F bound, F x) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(test, bound, _CMP_NLT_UQ), x);
  }

  // The two bfloat16 of each word as floats: bits 0..15, bits 16..31.
  static F low_half(F words) { return bits_shifted_left(words, 16); }
  static F high_half(F words) {
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(words), _mm512_set1_epi32(-65536)));
  }

  // out[16 i + j] = rows[j][i] for 16 rows of 16 words.
  static void transpose_words(const uint32_t* const* rows, uint32_t* out) {
    __m512 a[16], b[16];
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) a[j] = _mm512_loadu_ps(rows[j]);
#pragma GCC unroll 8
    for (int j = 0; j < 16; j += 2) {  // pairs of words of two rows
      b[j] = _mm512_unpacklo_ps(a[j], a[j + 1]);
      b[j + 1] = _mm512_unpackhi_ps(a[j], a[j + 1]);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 16; j += 4) {  // lane l of a[j + i]: word 4 l + i of rows j .. j + 3
      a[j] = unpack_low(b[j], b[j + 2]);
      a[j + 1] = unpack_high(b[j], b[j + 2]);
      a[j + 2] = unpack_low(b[j + 1], b[j + 3]);
      a[j + 3] = unpack_high(b[j + 1], b[j + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {  // gather the four lanes l of word 4 l + i
      const __m512 low02 = _mm512_shuffle_f32x4(a[i], a[i + 4], 0x88),
                   low13 = _mm512_shuffle_f32x4(a[i], a[i + 4], 0xdd);
      const __m512 high02 = _mm512_shuffle_f32x4(a[i + 8], a[i + 12], 0x88),
                   high13 = _mm512_shuffle_f32x4(a[i + 8], a[i + 12], 0xdd);
      _mm512_storeu_ps(out + 16 * i, _mm512_shuffle_f32x4(low02, high02, 0x88));
      _mm512_storeu_ps(out + 16 * (i + 4), _mm512_shuffle_f32x4(low13, high13, 0x88));
      _mm512_storeu_ps(out + 16 * (i + 8), _mm512_shuffle_f32x4(low02, high02, 0xdd));
      _mm512_storeu_ps(out + 16 * (i + 12), _mm512_shuffle_f32x4(low13, high13, 0xdd));
    }
  }
  static __m512 unpack_low(__m512 a, __m512 b) {
    return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
  }
  static __m512 unpack_high(__m512 a, __m512 b) {
    return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
  }

#ifdef TTS_DOT_PAIRS
  // Pairs from two vectors whose floats are exact in bfloat16.
  static F pairs_of(F low, F high) {
    return _mm512_castsi512_ps(
        _mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(low), 16), _mm512_castps_si512(high)));
  }
#ifdef TTS_EMULATE_BF16_DOT
  // Only in the C++ tests: runs the level's layout and blocking on machines without the instructions.
  static F dot_pairs(F a, F b, F sum) {
    return fma(low_half(a), low_half(b), fma(high_half(a), high_half(b), sum));
  }
  static void store_bf16(void* p, F x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
  }
#else
  // sum + a.high * b.high + a.low * b.low, per word.
  static F dot_pairs(F a, F b, F sum) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }
  // 16 floats as 16 bfloat16, rounded to nearest even.
  static void store_bf16(void* p, F x) {
    _mm256_storeu_si256(static_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(x));
  }
#endif
#endif
};
