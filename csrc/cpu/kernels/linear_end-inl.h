// Applies a LinearEnd to the sums of a row of a product.
#pragma once

#include "cpu/kernels/vec_math-inl.h"

// g / (1 + e^-g)
inline F silu(F g) {
  const F one = Vec::set1(1.0f), zero = Vec::set1(0.0f);
  const F e = exp2_flushed(Vec::mul(Vec::abs(g), Vec::set1(-1.44269504f)));  // e^-|g|
  const F share = Vec::add(e, Vec::zero_below(g, zero, Vec::sub(one, e)));   // 1, or e where g < 0
  return Vec::mul(g, Vec::div(share, Vec::add(one, e)));
}

// Finishes N panels from `panel` on. Block has the bias (null for none) and the end.
template <int N, class Block>
void finish_row(const Block& block, int panel, const float* sums, float* out) {
  constexpr int kColumns = N * kVecs;
  F sum[kColumns];
  for (int j = 0; j < kColumns; ++j) {
    sum[j] = Vec::load(sums + j * Vec::kLanes);
    if (block.bias != nullptr) {
      sum[j] = Vec::add(sum[j], Vec::load(block.bias + panel * kPanelOutputs + j * Vec::kLanes));
    }
  }
  if (block.end == LinearEnd::kSwiGLU) {
    out += panel / 2 * kPanelOutputs;
    for (int n = 0; n + 1 < N; n += 2) {
      for (int i = 0; i < kVecs; ++i, out += Vec::kLanes) {
        Vec::store(out, Vec::mul(silu(sum[n * kVecs + i]), sum[(n + 1) * kVecs + i]));
      }
    }
    return;
  }
  out += panel * kPanelOutputs;
  for (int j = 0; j < kColumns; ++j, out += Vec::kLanes) {
    Vec::store(out, block.end == LinearEnd::kAdd ? Vec::add(Vec::load(out), sum[j]) : sum[j]);
  }
}
