// ALiBi: lowers logits by the distance of their keys.
#pragma once

#include "cpu/kernels/vec_math-inl.h"

// Turns scores s [pages of a tile, kPageSize] of the query at `position` into logits over ln 2, for pages
// [begin, end): times `scale`, minus slope * distance. columns: path columns of the pages.
inline void subtract_slope(float slope, int position, float scale, const int* columns, int begin, int end,
                           uint32_t* s) {
  constexpr float kTokens[kPageSize] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const F factor = Vec::set1(scale), step = Vec::set1(slope * 1.44269504f);
  for (int page = begin; page < end; ++page) {
    const F first = Vec::set1(static_cast<float>(columns[page] * kPageSize - position));
    for (int t = 0; t < kPageSize; t += Vec::kLanes) {
      uint32_t* at = s + page * kPageSize + t;
      const F negative_distance = Vec::add(first, Vec::load(kTokens + t));
      Vec::store(at, Vec::fma(Vec::load(at), factor, Vec::mul(negative_distance, step)));
    }
  }
}
