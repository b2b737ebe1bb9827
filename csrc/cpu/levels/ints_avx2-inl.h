// Integers in 256-bit vectors, beside `Vec`.
#pragma once

struct Ints {
  using I = __m256i;
  static constexpr int kRows = 3;

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

  // Sums of products of bytes u of weights and whole numbers of x, four in each lane: exact.
  using Sum = I;
  static uint32_t start_word(float start) { return static_cast<uint32_t>(static_cast<int32_t>(start)); }
  static Sum start(const uint32_t* word) { return set1(static_cast<int>(*word)); }
  static Vec::F floats(Sum sum) { return _mm256_cvtepi32_ps(sum); }

  // int16, as the product of bytes (PMADDUBSW) saturates where both are large.
  static constexpr int kXWords = 2;  // inputs 0 and 2, then 1 and 3
  struct Operand {
    I even, odd;
  };
  static Operand operand(I u) { return {both(u, set1(0x00ff00ff)), _mm256_srli_epi16(u, 8)}; }
  static Sum add(Sum sum, Operand u, const uint32_t* x) {
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(u.even, set1(static_cast<int>(x[0]))));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(u.odd, set1(static_cast<int>(x[1]))));
  }
  // 8 whole numbers of x from the i-th of the group on.
  static void store_x(Vec::F x, int i, uint32_t* out) {
    const __m128i order = _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
    const I whole = _mm256_cvtps_epi32(x);
    const __m128i halves = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i / 2), _mm_shuffle_epi8(halves, order));
  }
};
