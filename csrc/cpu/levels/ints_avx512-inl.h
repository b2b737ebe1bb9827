// Integers in 512-bit vectors, for use beside `Vec`. Levels whose CPUs multiply bytes in fours define
// TTS_DOT_BYTES before including this.
#pragma once

struct Ints {
  using I = __m512i;
  static constexpr int kRows = 6;  // 6 x 2 integer sums, as many float sums, 2 operands, 1 of x

  static I set1(int x) { return _mm512_set1_epi32(x); }
  static I load(const void* p) { return _mm512_loadu_si512(p); }
  static void store(void* p, I x) { _mm512_storeu_si512(p, x); }
  static I both(I a, I b) { return _mm512_and_si512(a, b); }
  static I either(I a, I b) { return _mm512_or_si512(a, b); }
  static I shifted_left(I x, int n) { return _mm512_slli_epi32(x, static_cast<unsigned>(n)); }
  static I shifted_right(I x, int n) { return _mm512_srli_epi32(x, static_cast<unsigned>(n)); }
  static I load_table(const uint8_t* table) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  }
  static I look_up(I table, I indices) { return _mm512_shuffle_epi8(table, indices); }

  static Vec::F widen_float16(const void* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
  }
  static Vec::F widen_bfloat16(const void* p) {
    const __m256i halves = _mm256_loadu_si256(static_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
  }

  // Exact sums of products of weight bytes u and integers of x, four per lane. See Dot in
  // quantised_linear-inl.h.
  using Sum = I;
  static uint32_t start_word(float start) { return static_cast<uint32_t>(static_cast<int32_t>(start)); }
  static Sum start(const uint32_t* word) { return set1(static_cast<int>(*word)); }
  static Vec::F floats(Sum sum) { return _mm512_cvtepi32_ps(sum); }

  static constexpr int kXWords = 1;  // per four inputs of x: four int8
  // Stores 16 integers of x, from index i of the group on.
  static void store_x(Vec::F x, int i, uint32_t* out) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i / 4), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x)));
  }

#ifdef TTS_DOT_BYTES
  static constexpr bool kBySize = false;
  template <int kMost>
  struct Dot {
    static constexpr bool kSigned = false;
    static constexpr int kTogether = 8;
    using Operand = I;
    using Part = Sum;
    static Operand operand(I u) { return u; }
    static Part begin(Sum sum) { return sum; }
    static Sum end(Sum, Part part) { return part; }
#ifdef TTS_EMULATE_BF16_DOT
    // Only in the C++ tests, like Vec::dot_pairs.
    static Part add(Part part, Operand u, const uint32_t* x) {
      const I word = set1(static_cast<int>(*x)), low = set1(0x00ff00ff);
      const I even = _mm512_srai_epi16(_mm512_slli_epi16(word, 8), 8), odd = _mm512_srai_epi16(word, 8);
      part = _mm512_add_epi32(part, _mm512_madd_epi16(both(u, low), even));
      return _mm512_add_epi32(part, _mm512_madd_epi16(_mm512_srli_epi16(u, 8), odd));
    }
#else
    static Part add(Part part, Operand u, const uint32_t* x) {
      return _mm512_dpbusd_epi32(part, u, set1(static_cast<int>(*x)));
    }
#endif
  };
#else
  static constexpr bool kBySize = true;
  // Sums in 16 bits, as in the avx2 level. Compared with int16 products, 1 to 64 rows take 0.85 to 0.63 of
  // the time in 4 bits, 0.85 to 0.60 in 5, 0.87 to 0.55 in 6, and 0.92 to 1.13 in 8 bits and tables (a Xeon
  // with AMX at this level, one thread, other load on the machine).
  template <int kMost>
  struct Dot {
    static constexpr bool kSigned = false;
    static constexpr int kTogether = 32767 / (2 * 127 * kMost);  // words
    using Operand = I;
    using Part = I;
    static Operand operand(I u) { return u; }
    static Part begin(Sum) { return _mm512_setzero_si512(); }
    static Part add(Part part, I u, I x) { return _mm512_add_epi16(part, _mm512_maddubs_epi16(u, x)); }
    static Part add(Part part, Operand u, const uint32_t* x) {
      return add(part, u, set1(static_cast<int>(*x)));
    }
    static Sum end(Sum sum, Part part) {
      return _mm512_add_epi32(sum, _mm512_madd_epi16(part, _mm512_set1_epi16(1)));
    }
  };
#endif
};

#ifndef TTS_DOT_BYTES
// For any byte u: |u - 128| times x with the sign of u - 128, as in the avx2 level.
template <>
struct Ints::Dot<255> : Ints::Dot<128> {
  static constexpr bool kSigned = true;
  struct Operand {
    I size;
    __mmask64 negative;
  };
  static Operand operand(I u) {
    const I less = _mm512_xor_si512(u, set1(static_cast<int>(0x80808080)));
    return {_mm512_abs_epi8(less), _mm512_movepi8_mask(less)};
  }
  static Part add(Part part, Operand u, const uint32_t* x) {
    const I word = set1(static_cast<int>(*x));
    return Dot<128>::add(part, u.size, _mm512_mask_sub_epi8(word, u.negative, _mm512_setzero_si512(), word));
  }
};
#endif
