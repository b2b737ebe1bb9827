// Products of rows and quantised weights. Sums within a group are of integers, exact in any order; floats are
// summed over the groups in their order. So an output's bits depend on its row and its weights only, however
// rows, panels and inputs are cut into blocks, and are the same at all levels with fused multiply-add.
#pragma once

#include "cpu/kernels/linear_end-inl.h"
#include "cpu/kernels/micro_kernels-inl.h"
#include "cpu/kernels/quantised_rows-inl.h"
#include "cpu/kernels/quantised_unpack-inl.h"

// Panels of a block of sums.
constexpr int kQuantPanels = Vec::kColumns > 1 ? kPanelsTogether : 1;
constexpr int kSumsRow = kPanelOutputs * kPanelsTogether;

// Rows times N panels of a chunk of `groups` groups of 32 inputs.
struct ChunkRows {
  const PanelChunk* panels;
  int groups;
  const uint32_t* x;
  int64_t x_stride;
  float* sums;
};

// total += scale of x * sum of the group * scale of the weights, and += their minima times the sum of x.
template <bool kMin, int M, int N>
inline void add_group(const ChunkRows& chunk, int weight_group, const uint32_t* x, int half,
                      const F (&sum)[M][N * kVecs], F (&total)[M][N * kVecs]) {
#pragma GCC unroll 8
  for (int j = 0; j < N * kVecs; ++j) {
    const PanelChunk& panel = chunk.panels[j / kVecs];
    const int lane = j % kVecs * Vec::kLanes;
    const F scale = Vec::load(panel.scales[weight_group] + lane);
#pragma GCC unroll 8
    for (int r = 0; r < M; ++r) {
      const F x_scale = Vec::broadcast(x + r * chunk.x_stride + kScaleAt);
      total[r][j] = Vec::fma(Vec::mul(sum[r][j], x_scale), scale, total[r][j]);
    }
    if constexpr (kMin) {
      const F min = Vec::load(panel.mins[weight_group] + lane);
#pragma GCC unroll 8
      for (int r = 0; r < M; ++r) {
        const F share = Vec::broadcast(x + r * chunk.x_stride + kShareAt + half);
        total[r][j] = Vec::fma(share, min, total[r][j]);
      }
    }
  }
}

template <int kGroup, bool kMin, int M, int N>
void multiply_chunk(const ChunkRows& chunk) {
  constexpr int kColumns = N * kVecs, kHalves = kXGroup / kGroup, kWords = kGroup / 4;
  F total[M][kColumns];
#pragma GCC unroll 8
  for (int r = 0; r < M; ++r) {
#pragma GCC unroll 8
    for (int j = 0; j < kColumns; ++j) total[r][j] = Vec::load(chunk.sums + r * kSumsRow + j * Vec::kLanes);
  }
  const uint32_t* x = chunk.x;
  for (int g = 0; g < chunk.groups; ++g, x += kGroupWords) {
#pragma GCC unroll 2
    for (int half = 0; half < kHalves; ++half) {
      Ints::Sum sum[M][kColumns];
#pragma GCC unroll 8
      for (int r = 0; r < M; ++r) {
        const Ints::Sum start = Ints::start(x + r * chunk.x_stride + kStartAt + half);
#pragma GCC unroll 8
        for (int j = 0; j < kColumns; ++j) sum[r][j] = start;
      }
#pragma GCC unroll 8
      for (int k = half * kWords; k < (half + 1) * kWords; ++k) {
        Ints::Operand u[kColumns];
#pragma GCC unroll 8
        for (int j = 0; j < kColumns; ++j) {
          const PanelChunk& panel = chunk.panels[j / kVecs];
          u[j] = Ints::operand(Ints::load(panel.words + g / 2 * panel.plane_stride +
                                          (g % 2 * 8 + k) * kWordBytes + j % kVecs * kVecBytes));
        }
#pragma GCC unroll 8
        for (int r = 0; r < M; ++r) {
          const uint32_t* const word = x + r * chunk.x_stride + k * Ints::kXWords;
#pragma GCC unroll 8
          for (int j = 0; j < kColumns; ++j) sum[r][j] = Ints::add(sum[r][j], u[j], word);
        }
      }
      F group_sum[M][kColumns];
#pragma GCC unroll 8
      for (int r = 0; r < M; ++r) {
#pragma GCC unroll 8
        for (int j = 0; j < kColumns; ++j) group_sum[r][j] = Ints::floats(sum[r][j]);
      }
      add_group<kMin, M, N>(chunk, g * kHalves + half, x, half, group_sum, total);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < M; ++r) {
#pragma GCC unroll 8
    for (int j = 0; j < kColumns; ++j) Vec::store(chunk.sums + r * kSumsRow + j * Vec::kLanes, total[r][j]);
  }
}

template <int kGroup, bool kMin>
struct MultiplyChunk {
  const ChunkRows& chunk;

  template <int M, int N>
  void run() const {
    multiply_chunk<kGroup, kMin, M, N>(chunk);
  }
};

inline void multiply_rows(const QuantForm& form, const ChunkRows& chunk, int rows, int panels) {
  const auto call = [&](const auto& body) { with_block<Ints::kRows, kQuantPanels>(rows, panels, body); };
  const bool min = form.has_min || form.has_zeros;
  if (form.group == kXGroup) {
    min ? call(MultiplyChunk<kXGroup, true>{chunk}) : call(MultiplyChunk<kXGroup, false>{chunk});
  } else {
    min ? call(MultiplyChunk<16, true>{chunk}) : call(MultiplyChunk<16, false>{chunk});
  }
}

// All rows times `count` panels, the n-th of their sums on, of a chunk that begins at input `first`.
inline void multiply_chunks(const QuantBlock& block, const PanelChunk* chunks, int rows, int n, int count,
                            int64_t first, int groups) {
  const int blocks = (rows + Ints::kRows - 1) / Ints::kRows;
  for (int i = 0; i < blocks; ++i) {  // as even as they come
    const int row = i * rows / blocks, row_end = (i + 1) * rows / blocks;
    for (int c = 0; c < count; c += kQuantPanels) {
      const ChunkRows chunk{chunks + c, groups,
                            block.x + row * block.x_stride + first / kXGroup * kGroupWords, block.x_stride,
                            block.sums + row * kSumsRow + (n + c) * kPanelOutputs};
      multiply_rows(block.form, chunk, row_end - row, min_of(count - c, kQuantPanels));
    }
  }
}

// A chunk of inputs after the other: what is unpacked is multiplied with all rows from the L1 cache. Two
// panels at a time where rows are many, which read x once for both; else one, so that memory is read as it
// lies.
inline void multiply_quantised(const QuantBlock& block, int rows, int num_panels) {
  PanelChunk chunks[kPanelsTogether];
  const QuantLayout& layout = block.layout;
  const int together = rows > Ints::kRows ? kPanelsTogether : 1;
  for (int panel = 0; panel < num_panels; panel += kPanelsTogether) {
    const int panels = min_of(num_panels - panel, kPanelsTogether);
    for (int i = 0; i < rows * kSumsRow; ++i) block.sums[i] = 0.0f;
    for (int n = 0; n < panels; n += together) {
      const int count = min_of(panels - n, together);
      const uint8_t* at = block.panels + (panel + n) * block.panel_bytes;
      for (int64_t first = 0; first < block.inputs; first += kChunkInputs) {
        const int64_t left = block.inputs - first;
        const int inputs = left < kChunkInputs ? static_cast<int>(left) : kChunkInputs;
        for (int i = 0; i < count; ++i) {
          unpack_chunk(at + i * block.panel_bytes, inputs, block.form, layout, chunks[i]);
        }
        multiply_chunks(block, chunks, rows, n, count, first, inputs / kXGroup);
        at += inputs / layout.inputs * layout.bytes;
      }
    }
    for (int row = 0; row < rows; ++row) {
      float* const out = block.out + row * block.out_stride;
      const float* const sums = block.sums + row * kSumsRow;
      panels == 2 ? finish_row<2>(block, panel, sums, out) : finish_row<1>(block, panel, sums, out);
    }
  }
}

constexpr QuantKernels quantised_kernels() { return {kGroupWords, quantise_row, multiply_quantised}; }
