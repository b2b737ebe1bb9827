// Integers in 512-bit vectors, beside `Vec`. Levels whose CPUs multiply bytes in fours define TTS_DOT_BYTES
// before including this.
#pragma once

struct Ints {
  using I = __m512i;
  static constexpr bool kBySize = false;
  static constexpr int kRows = 6;  // 6 x 2 sums of integers, as many of floats, 2 (4) operands, 1 (2) of x

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

  // Sums of products of bytes u of weights and whole numbers of x, four in each lane: exact. See Dot in
  // quantised_linear-inl.h.
  using Sum = I;
  static uint32_t start_word(float start) { return static_cast<uint32_t>(static_cast<int32_t>(start)); }
  static Sum start(const uint32_t* word) { return set1(static_cast<int>(*word)); }
  static Vec::F floats(Sum sum) { return _mm512_cvtepi32_ps(sum); }

#ifdef TTS_DOT_BYTES
  static constexpr int kXWords = 1;  // of four inputs of x: four int8
  using Word = I;
  static Word word_of(I u) { return u; }
#ifdef TTS_EMULATE_BF16_DOT
  // Only in the C++ tests, as Vec::dot_pairs.
  static Sum add(Sum sum, Word u, const uint32_t* x) {
    const I word = set1(static_cast<int>(*x)), low = set1(0x00ff00ff);
    const I even = _mm512_srai_epi16(_mm512_slli_epi16(word, 8), 8), odd = _mm512_srai_epi16(word, 8);
    sum = _mm512_add_epi32(sum, _mm512_madd_epi16(both(u, low), even));
    return _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_srli_epi16(u, 8), odd));
  }
#else
  static Sum add(Sum sum, Word u, const uint32_t* x) {
    return _mm512_dpbusd_epi32(sum, u, set1(static_cast<int>(*x)));
  }
#endif
  // 16 whole numbers of x from the i-th of the group on.
  static void store_x(Vec::F x, int i, uint32_t* out) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i / 4), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x)));
  }
#else
  static constexpr int kXWords = 2;  // int16: inputs 0 and 2, then 1 and 3
  struct Word {
    I even, odd;
  };
  static Word word_of(I u) { return {both(u, set1(0x00ff00ff)), _mm512_srli_epi16(u, 8)}; }
  static Sum add(Sum sum, Word u, const uint32_t* x) {
    sum = _mm512_add_epi32(sum, _mm512_madd_epi16(u.even, set1(static_cast<int>(x[0]))));
    return _mm512_add_epi32(sum, _mm512_madd_epi16(u.odd, set1(static_cast<int>(x[1]))));
  }
  static void store_x(Vec::F x, int i, uint32_t* out) {
    const __m128i order = _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
    const __m256i halves = _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(x));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i / 2),
                        _mm256_shuffle_epi8(halves, _mm256_broadcastsi128_si256(order)));
  }
#endif

  template <int kMost>
  struct Dot {
    static constexpr bool kSigned = false;
    static constexpr int kTogether = 8;
    using Operand = Word;
    using Part = Sum;
    static Operand operand(I u) { return word_of(u); }
    static Part begin(Sum sum) { return sum; }
    static Part add(Part part, Operand u, const uint32_t* x) { return Ints::add(part, u, x); }
    static Sum end(Sum, Part part) { return part; }
  };
};
