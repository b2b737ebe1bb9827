// 512-bit vectors of floats; the avx512_bf16 level defines TTS_DOT_PAIRS before including this.

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
  static F max(F a, F b) { return _mm512_max_ps(a, b); }  // b where one is NaN
  static float sum(F x) { return _mm512_reduce_add_ps(x); }
  static float max_of(F x) { return _mm512_reduce_max_ps(x); }

  static F abs(F x) { return _mm512_abs_ps(x); }
  static F copy_sign(F magnitude, F sign) {
    return _mm512_or_ps(magnitude, _mm512_and_ps(sign, set1(-0.0f)));
  }
  static F bits_shifted_left(F x, int n) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(x), static_cast<unsigned>(n)));
  }
  // x where not (test < bound), else 0; a NaN passes.
  static F zero_below(F test, F bound, F x) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(test, bound, _CMP_NLT_UQ), x);
  }

  // The two bfloat16 of each word as floats: bits 0..15, bits 16..31.
  static F low_half(F words) { return bits_shifted_left(words, 16); }
  static F high_half(F words) {
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(words), _mm512_set1_epi32(-65536)));
  }

#ifdef TTS_DOT_PAIRS
#ifdef TTS_EMULATE_BF16_DOT
  // Only in the C++ tests: lets the level's layout and blocking run on a machine without the instructions.
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
