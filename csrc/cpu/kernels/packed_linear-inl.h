// Products of rows and packed weights. Every output sums its terms in input order, independent of the rows
// and panels beside it.
#pragma once

#include "cpu/kernels/linear_end-inl.h"
#include "cpu/kernels/micro_kernels-inl.h"

// At least two, because gate and up panels are multiplied together.
constexpr int kLinearPanels = Vec::kColumns > 1 ? Vec::kColumns : 2;
constexpr int kLinearRows = Vec::kColumns > 1 ? Vec::kRows : Vec::kRows / 2;

template <Product kProduct, int M, int N>
void linear_block(const LinearBlock& block) {
  constexpr int kColumns = N * kVecs, kSteps = kStepsPerWord<kProduct>;
  Vec::F sum[M][kColumns];
#pragma GCC unroll 8
  for (int r = 0; r < M; ++r) {
#pragma GCC unroll 8
    for (int j = 0; j < kColumns; ++j) {
      sum[r][j] = block.first ? Vec::set1(0.0f) : Vec::load(block.sums + (r * kColumns + j) * Vec::kLanes);
    }
  }
  const uint32_t* x = block.x;
  int fetched = block.ahead == nullptr ? block.words : block.fetch_first;
  for (int word = 0; word < block.words; ++word, x += kSteps) {
    Vec::F words[kColumns];
#pragma GCC unroll 8
    for (int j = 0; j < kColumns; ++j) {
      words[j] = Vec::load(block.panels + (j / kVecs) * block.panel_stride + word * kPanelOutputs +
                           (j % kVecs) * Vec::kLanes);
    }
    if (word == fetched) {
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) {
        __builtin_prefetch(block.ahead + n * block.panel_stride + word * kPanelOutputs, 0, 2);
      }
      fetched += block.fetch_stride;
    }
    add_products<kProduct>(x, static_cast<int>(block.x_stride), words, sum);
  }
  if (!block.last) {
#pragma GCC unroll 8
    for (int r = 0; r < M; ++r) {
#pragma GCC unroll 8
      for (int j = 0; j < kColumns; ++j) {
        Vec::store(block.sums + (r * kColumns + j) * Vec::kLanes, sum[r][j]);
      }
    }
    return;
  }
  if (block.bias != nullptr) {
#pragma GCC unroll 8
    for (int j = 0; j < kColumns; ++j) {
      const Vec::F bias = Vec::load(block.bias + j * Vec::kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < M; ++r) sum[r][j] = Vec::add(sum[r][j], bias);
    }
  }
  for (int r = 0; r < M; ++r) {
    float* out = block.out + r * block.out_stride;
    if (block.end == LinearEnd::kSwiGLU) {
      for (int n = 0; n + 1 < N; n += 2) {
        for (int i = 0; i < kVecs; ++i, out += Vec::kLanes) {
          Vec::store(out, Vec::mul(silu(sum[r][n * kVecs + i]), sum[r][(n + 1) * kVecs + i]));
        }
      }
      continue;
    }
    for (int j = 0; j < kColumns; ++j, out += Vec::kLanes) {
      Vec::store(out, block.end == LinearEnd::kAdd ? Vec::add(Vec::load(out), sum[r][j]) : sum[r][j]);
    }
  }
}

template <Product kProduct>
struct LinearRows {
  const LinearBlock& block;

  template <int M, int N>
  void run() const {
    linear_block<kProduct, M, N>(block);
  }
};

template <Product kProduct>
void multiply_panels(const LinearBlock& block, int rows, int num_panels) {
  with_block<kLinearRows, kLinearPanels>(rows, num_panels, LinearRows<kProduct>{block});
}

template <Product kProduct>
constexpr LinearKernels linear_kernels() {
  return {kLinearRows, kLinearPanels, kProduct == Product::kPairs ? LinearX::kPairs : LinearX::kFloats,
          multiply_panels<kProduct>};
}
