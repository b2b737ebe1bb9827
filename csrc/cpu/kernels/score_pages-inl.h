// The arithmetic of score_pages.
#pragma once

#include "cpu/kernels/micro_kernels-inl.h"
#include "cpu/kernels/vec_math-inl.h"

inline void pack_summaries(const uint32_t* const* rows, int words, uint32_t* tile) {
  const uint32_t* part[16];
  for (int i = 0; i < words; i += 16) {
    const int begin = min_of(i, words - 16);  // the last 16 words overlap if `words` is no multiple of 16
    for (int j = 0; j < 16; ++j) part[j] = rows[j] + begin;
    Vec::transpose_words(part, tile + 16 * begin);
  }
}

template <Product kProduct>
void multiply_by(const float* q, int rows, int channels, const uint32_t* const* tiles, int count, float* s) {
  for (int r = 0, step; r < rows; r += step) {
    step = even_part(rows - r, Vec::kRows);
    for (int n = 0, columns; n < count; n += columns) {
      columns = even_part(count - n, Vec::kColumns);
      with_block<Vec::kRows, Vec::kColumns>(
          step, columns,
          ScoreRows<kProduct>{reinterpret_cast<const uint32_t*>(q + r * channels), channels, tiles + n, 0,
                              channels, reinterpret_cast<uint32_t*>(s + r * kScoreRow + n * kPageSize)});
    }
  }
}

inline void multiply_summaries(const float* q, int rows, int channels, bool pairs,
                               const uint32_t* const* tiles, int count, float* s) {
  static_assert(kScoreStride == kScoreRow);
  pairs ? multiply_by<Product::kHalves>(q, rows, channels, tiles, count, s)
        : multiply_by<Product::kFloats>(q, rows, channels, tiles, count, s);
}

inline bool add_softmax(float* logits, int64_t count, float weight, float* scores) {
  F largest = Vec::set1(-__builtin_inff());
  for (int64_t i = 0; i < count; i += Vec::kLanes) largest = Vec::max(Vec::load(logits + i), largest);
  const F minus_m = Vec::set1(-Vec::max_of(largest));
  F sum = Vec::set1(0.0f);
  for (int64_t i = 0; i < count; i += Vec::kLanes) {
    const F p = exp2_flushed(Vec::add(Vec::load(logits + i), minus_m));
    sum = Vec::add(sum, p);
    Vec::store(logits + i, p);
  }
  const float total = Vec::sum(sum);
  if (!(total < __builtin_inff())) return false;
  const F factor = Vec::set1(weight / total);
  for (int64_t i = 0; i < count; i += Vec::kLanes) {
    Vec::store(scores + i, Vec::fma(Vec::load(logits + i), factor, Vec::load(scores + i)));
  }
  return true;
}

constexpr PageScoreKernels page_score_kernels() { return {pack_summaries, multiply_summaries, add_softmax}; }
