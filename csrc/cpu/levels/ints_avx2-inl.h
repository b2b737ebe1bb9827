// Integers in 256-bit vectors, for use beside `Vec`.
#pragma once

struct Ints {
  using I = __m256i;
  static constexpr bool kBySize = true;
  // Some float sums spill; yet 4 and 8 rows in 4 bits take 0.95 of the time of blocks of three (Zen 3).
  static constexpr int kRows = 4;

  static I set1(int x) { return _mm256_set1_epi32(x); }
  static I load(const void* p) { return _mm256_loadu_si256(static_cast<const I*>(p)); }
  static void store(void* p, I x) { _mm256_storeu_si256(static_cast<I*>(p), x); }
  static I both(I a, I b) { return _mm256_and_si256(a, b); }
  static I either(I a, I b) { return _mm256_or_si256(a, b); }
  static I shifted_left(I x, int n) { return _mm256_slli_epi32(x, n); }
  static I shifted_right(I x, int n) { return _mm256_srli_epi32(x, n); }
  static I load_table(const uint8_t* table) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  }
  static I look_up(I table, I indices) { return _mm256_shuffle_epi8(table, indices); }

  static Vec::F widen_float16(const void* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p)));
  }
  static Vec::F widen_bfloat16(const void* p) {
    const __m128i halves = _mm_loadu_si128(static_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
  }

  // Exact sums of products of weight bytes u and integers of x, four per lane. See Dot in
  // quantised_linear-inl.h.
  using Sum = I;
  static uint32_t start_word(float start) { return static_cast<uint32_t>(static_cast<int32_t>(start)); }
  static Sum start(const uint32_t* word) { return set1(static_cast<int>(*word)); }
  static Vec::F floats(Sum sum) { return _mm256_cvtepi32_ps(sum); }

  static constexpr int kXWords = 1;  // per four inputs of x: four int8
  // PMADDUBSW adds two products of a byte and an int8 in 16 bits, which hold the sum over kTogether words, as
  // bytes are at most kMost and |x| <= 127. Compared with int16 products, a step of a 0.54B model in Q4_0
  // takes 0.87, 0.70 and 0.65 of the time with 1, 8 and 64 branches (Zen 3, two threads).
  template <int kMost>
  struct Dot {
    static constexpr bool kSigned = false;
    static constexpr int kTogether = 32767 / (2 * 127 * kMost);  // words
    using Operand = I;
    using Part = I;
    static Operand operand(I u) { return u; }
    static Part begin(Sum) { return _mm256_setzero_si256(); }
    static Part add(Part part, I u, I x) { return _mm256_add_epi16(part, _mm256_maddubs_epi16(u, x)); }
    static Part add(Part part, Operand u, const uint32_t* x) {
      return add(part, u, set1(static_cast<int>(*x)));
    }
    static Sum end(Sum sum, Part part) {
      return _mm256_add_epi32(sum, _mm256_madd_epi16(part, _mm256_set1_epi16(1)));
    }
  };
  // Stores 8 integers of x, from index i of the group on.
  static void store_x(Vec::F x, int i, uint32_t* out) {
    const I whole = _mm256_cvtps_epi32(x);
    const __m128i halves = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(out + i / 4), _mm_packs_epi16(halves, halves));
  }
};

// For any byte u: |u - 128| times x with the sign of u - 128, as 2 * 128 * 127 fits 16 bits and 2 * 255 * 127
// does not.
template <>
struct Ints::Dot<255> : Ints::Dot<128> {
  static constexpr bool kSigned = true;
  struct Operand {
    I size, sign;
  };
  static Operand operand(I u) {
    const I less = _mm256_xor_si256(u, set1(static_cast<int>(0x80808080)));
    return {_mm256_abs_epi8(less), less};
  }
  static Part add(Part part, Operand u, const uint32_t* x) {
    return Dot<128>::add(part, u.size, _mm256_sign_epi8(set1(static_cast<int>(*x)), u.sign));
  }
};
