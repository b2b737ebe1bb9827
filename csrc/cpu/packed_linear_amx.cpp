// packed_linear with bfloat16 weights on AMX tiles: a panel's [words][16] pairs are what its product takes as
// they lie, 16 words at a time. Sums of 32 rows x 32 outputs stay in four tiles.
//
// This kernel serves any number of rows. The dot product of avx512_bf16 rounds otherwise, so a second kernel
// for few rows would let a row's bits depend on how many are beside it. Nor should one be needed, though this
// has not been timed: few rows are bound by reading the weights, and tiles take them faster than memory gives
// them.
#include <immintrin.h>

#include "cpu/packed_linear_kernels.h"
#include "cpu/tree_attention_kernels.h"

namespace tts::amx {
namespace {
// clang-format off: each needs the one before
#include "cpu/vec_avx512-inl.h"
#include "cpu/micro_kernels-inl.h"
#include "cpu/tree_attention-inl.h"
#include "cpu/packed_linear-inl.h"
#include "cpu/amx_tiles-inl.h"
// clang-format on

constexpr int kMaxPanels = 8;
constexpr int kBlockRows = 2 * kTileRows;

// Sums are in the tiles 0 .. 3: of 32 rows x 2 panels in the order of rows, or of up to 16 rows x 4 panels.
// Those behind hold 1 or 2 bands of 16 rows of x, then weights.
constexpr int kX = 4;

// For blocks of so many rows.
TileShapes tile_shapes(int rows) {
  const bool tall = rows > kTileRows;
  TileShapes shapes;
  for (int tile = 0; tile < 8; ++tile) {
    const bool below = tall && (tile == 2 || tile == 3 || tile == kX + 1);  // of the second 16 rows
    const bool weights = tile > (tall ? kX + 1 : kX);
    const int tile_rows = weights ? kTileWords : below ? rows - kTileRows : min_of(rows, kTileRows);
    shapes.rows[tile] = static_cast<uint8_t>(tile_rows);
    shapes.row_bytes[tile] = 4 * kTileWords;
  }
  return shapes;
}

// Sums of up to 16 M rows x N panels += 16 words of x times 16 words of the panels, which lie `panel` words
// apart.
template <int M, int N>
void add_words(const uint32_t* x, int64_t band, const uint32_t* panels, int64_t panel) {
  constexpr int kW = kX + M;
  load_tile<kX>(x, 4 * kTileWords);
  load_tile<kW>(panels, 4 * kPanelOutputs);
  add_pair_products<0, kX, kW>();
  if constexpr (N > 1) {
    load_tile<kW + 1>(panels + panel, 4 * kPanelOutputs);
    add_pair_products<1, kX, kW + 1>();
  }
  if constexpr (N > 2) {
    load_tile<kW + 2>(panels + 2 * panel, 4 * kPanelOutputs);
    add_pair_products<2, kX, kW + 2>();
    load_tile<kW>(panels + 3 * panel, 4 * kPanelOutputs);
    add_pair_products<3, kX, kW>();
  }
  if constexpr (M > 1) {
    load_tile<kX + 1>(x + band, 4 * kTileWords);
    add_pair_products<2, kX + 1, kW>();
    if constexpr (N > 1) add_pair_products<3, kX + 1, kW + 1>();
  }
}

// The same for fewer than 16 words of the panels: copies with zeros behind them, as x has.
template <int M, int N>
void add_last_words(const uint32_t* x, int64_t band, const uint32_t* panels, int64_t panel, int words) {
  alignas(64) uint32_t padded[N][kTileWords][kPanelOutputs] = {};
  for (int n = 0; n < N; ++n) {
    __builtin_memcpy(padded[n], panels + n * panel, 4u * static_cast<unsigned>(words) * kPanelOutputs);
  }
  add_words<M, N>(x, band, padded[0][0], kTileWords * kPanelOutputs);
}

template <int N>
void finish_row(const LinearBlock& block, const float* sums, float* out) {
  F sum[N];
  for (int n = 0; n < N; ++n) {
    sum[n] = Vec::load(sums + n * kPanelOutputs);
    if (block.bias != nullptr) sum[n] = Vec::add(sum[n], Vec::load(block.bias + n * kPanelOutputs));
  }
  if (block.end == LinearEnd::kSwiGLU) {
    for (int n = 0; n + 1 < N; n += 2, out += kPanelOutputs) {
      Vec::store(out, Vec::mul(silu(sum[n]), sum[n + 1]));
    }
    return;
  }
  for (int n = 0; n < N; ++n, out += kPanelOutputs) {
    Vec::store(out, block.end == LinearEnd::kAdd ? Vec::add(Vec::load(out), sum[n]) : sum[n]);
  }
}

// Up to 16 M rows times N panels.
template <int M, int N>
void multiply_block(const LinearBlock& block, int rows) {
  zero_tile<0>();
  if constexpr (M * N > 1) zero_tile<M * N == 2 && M == 2 ? 2 : 1>();
  if constexpr (M * N > 2) {
    zero_tile<2>();
    zero_tile<3>();
  }
  int word = 0;
  const uint32_t* x = block.x;
  for (; word + kTileWords <= block.words; word += kTileWords, x += kTileRows * kTileWords) {
    add_words<M, N>(x, block.x_stride, block.panels + word * kPanelOutputs, block.panel_stride);
  }
  if (word < block.words) {
    add_last_words<M, N>(x, block.x_stride, block.panels + word * kPanelOutputs, block.panel_stride,
                         block.words - word);
  }
  constexpr int kColumns = N * kPanelOutputs;
  alignas(64) float sums[M * kTileRows][kColumns];
  store_tile<0>(sums[0], sizeof(sums[0]));
  if constexpr (N > 1) store_tile<1>(sums[0] + kPanelOutputs, sizeof(sums[0]));
  if constexpr (N > 2) {
    store_tile<2>(sums[0] + 2 * kPanelOutputs, sizeof(sums[0]));
    store_tile<3>(sums[0] + 3 * kPanelOutputs, sizeof(sums[0]));
  }
  if constexpr (M > 1) store_tile<2>(sums[kTileRows], sizeof(sums[0]));
  if constexpr (M > 1 && N > 1) store_tile<3>(sums[kTileRows] + kPanelOutputs, sizeof(sums[0]));
  for (int row = 0; row < rows; ++row) finish_row<N>(block, sums[row], block.out + row * block.out_stride);
}

// One block of rows times the panels of a unit; while it stays in the L1 cache the panels stream by.
template <int M, int N>
void multiply_panels_of(LinearBlock block, int rows, int num_panels) {
  const int64_t width = block.end == LinearEnd::kSwiGLU ? kPanelOutputs / 2 : kPanelOutputs;
  for (int panel = 0, n; panel < num_panels; panel += n) {
    n = num_panels - panel < N ? num_panels - panel : N;
    if constexpr (N == 4) {
      (n == 4   ? multiply_block<M, 4>
       : n == 3 ? multiply_block<M, 2>
       : n == 2 ? multiply_block<M, 2>
                : multiply_block<M, 1>)(block, rows);
      if (n == 3) n = 2;
    } else {
      (n == 2 ? multiply_block<M, 2> : multiply_block<M, 1>)(block, rows);
    }
    block.panels += n * block.panel_stride;
    block.out += n * width;
    if (block.bias != nullptr) block.bias += n * kPanelOutputs;
  }
}

void multiply_panels_tiled(const LinearBlock& all, int rows, int num_panels) {
  for (int row = 0, configured = 0, n; row < rows; row += n) {
    n = min_of(rows - row, kBlockRows);
    if (n != configured) {
      if (configured > 0) release_tiles();
      configure_tiles(tile_shapes(n));
      configured = n;
    }
    LinearBlock block = all;
    block.x += row / kTileRows * all.x_stride;
    block.out += row * all.out_stride;
    (n > kTileRows ? multiply_panels_of<2, 2> : multiply_panels_of<1, 4>)(block, n, num_panels);
  }
  release_tiles();
}

}  // namespace

constinit const LinearKernels kLinearBFloat16 = {kBlockRows, kMaxPanels, LinearX::kTiles,
                                                 multiply_panels_tiled};

}  // namespace tts::amx
