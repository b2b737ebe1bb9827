// packed_linear with bfloat16 weights on AMX tiles: the tile product reads a panel's [words][16] pairs in
// place, 16 words at a time.
//
// This kernel handles any number of rows. The dot product of avx512_bf16 rounds differently, so a second
// kernel for few rows would make a row's bits depend on the number of rows. Nor is one needed: with one row,
// both take the time of reading the weights.
#pragma once

#include "cpu/kernels/packed_linear-inl.h"
#include "cpu/kernels/tile_block-inl.h"

// With 64 rows, 2 and 4 are a quarter and a tenth slower; 8 is as fast.
constexpr int kTilePanels = 16;

// Up to 32 rows times panels.
struct LinearRowsOnTiles {
  const LinearBlock& block;
  const uint32_t* x;
  float* out;
  int rows;

  // N panels from `panel` on.
  template <int M, int N>
  void run(int panel) const {
    for_sums<M, N>([](auto tile, int, int) { zero_tile<tile.kIndex>(); });
    const uint32_t* columns[N];
    for (int n = 0; n < N; ++n) columns[n] = block.panels + (panel + n) * block.panel_stride;
    const uint32_t* words = x;
    int left = block.words;
    for (; left >= kTileWords; left -= kTileWords, words += kTileRows * kTileWords) {
      add_tiles<M, N>(words, words + block.x_stride, 4 * kTileWords, columns, 4 * kPanelOutputs);
      for (int n = 0; n < N; ++n) columns[n] += kTileWords * kPanelOutputs;
    }
    if (left > 0) {  // zero-padded copies, as x is padded too
      alignas(64) uint32_t padded[N][kTileWords * kPanelOutputs] = {};
      for (int n = 0; n < N; ++n) {
        __builtin_memcpy(padded[n], columns[n], 4u * static_cast<unsigned>(left) * kPanelOutputs);
        columns[n] = padded[n];
      }
      add_tiles<M, N>(words, words + block.x_stride, 4 * kTileWords, columns, 4 * kPanelOutputs);
    }
    alignas(64) float sums[M * kTileRows][N * kPanelOutputs];
    for_sums<M, N>([&](auto tile, int row, int n) {
      store_tile<tile.kIndex>(sums[row] + n * kPanelOutputs, sizeof(sums[0]));
    });
    for (int row = 0; row < rows; ++row) finish_row<N>(block, panel, sums[row], out + row * block.out_stride);
  }
};

// A block of rows stays in the L1 cache, or streams from the L2 cache, while the panels stream past.
void multiply_panels_on_tiles(const LinearBlock& block, int rows, int num_panels) {
  for (int row = 0, configured = 0, n; row < rows; row += n) {
    n = min_of(rows - row, kBlockRows);
    if (n != configured) {
      if (configured > 0) release_tiles();
      configure_tiles(block_shapes(n, kTileWords));
      configured = n;
    }
    const uint32_t* x = block.x + row / kTileRows * block.x_stride;
    for_columns_of(n, num_panels, LinearRowsOnTiles{block, x, block.out + row * block.out_stride, n});
  }
  release_tiles();
}

constexpr LinearKernels tile_linear_kernels() {
  return {kBlockRows, kTilePanels, LinearX::kTiles, multiply_panels_on_tiles};
}
