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

constexpr int kMaxPanels = 2;
constexpr int kBlockRows = 2 * kTileRows;
constexpr int kMaxRows = 8 * kBlockRows;  // of a call, which sets the tiles up once or twice

// Tile 2 m + n holds the sums of the m-th 16 rows and the n-th panel.
constexpr int kX = 4, kWeights = 6;  // first of two tiles each

// For blocks of so many rows.
TileShapes tile_shapes(int rows) {
  TileShapes shapes;
  const auto set = [&](int tile, int tile_rows) {
    shapes.rows[tile] = static_cast<uint8_t>(tile_rows);
    shapes.row_bytes[tile] = tile_rows > 0 ? 4 * kTileWords : 0;
  };
  for (int m = 0; m < 2; ++m) {
    const int tile_rows = m == 0 ? min_of(rows, kTileRows) : max_of(rows - kTileRows, 0);
    set(2 * m, tile_rows);
    set(2 * m + 1, tile_rows);
    set(kX + m, tile_rows);
    set(kWeights + m, kTileWords);
  }
  return shapes;
}

// Sums of M x N tiles += 16 words of x times 16 words of N panels, which lie `panel` words apart.
template <int M, int N>
void add_words(const uint32_t* x, int64_t x_stride, const uint32_t* panels, int64_t panel) {
  load_tile<kX>(x, 4 * x_stride);
  load_tile<kWeights>(panels, 4 * kPanelOutputs);
  add_pair_products<0, kX, kWeights>();
  if constexpr (N > 1) {
    load_tile<kWeights + 1>(panels + panel, 4 * kPanelOutputs);
    add_pair_products<1, kX, kWeights + 1>();
  }
  if constexpr (M > 1) {
    load_tile<kX + 1>(x + kTileRows * x_stride, 4 * x_stride);
    add_pair_products<2, kX + 1, kWeights>();
    if constexpr (N > 1) add_pair_products<3, kX + 1, kWeights + 1>();
  }
}

// The same for fewer than 16 words, those from `begin` on: copies with zeros behind them.
template <int M, int N>
void add_last_words(const LinearBlock& block, int rows, int64_t begin) {
  alignas(64) uint32_t x[kBlockRows][kTileWords] = {}, panels[N][kTileWords][kPanelOutputs] = {};
  const auto words = static_cast<unsigned>(block.words - begin);
  for (int row = 0; row < rows; ++row) {
    __builtin_memcpy(x[row], block.x + row * block.x_stride + begin, 4 * words);
  }
  for (int n = 0; n < N; ++n) {
    __builtin_memcpy(panels[n], block.panels + n * block.panel_stride + begin * kPanelOutputs,
                     4 * words * kPanelOutputs);
  }
  add_words<M, N>(x[0], kTileWords, panels[0][0], kTileWords * kPanelOutputs);
}

template <int N>
void finish_row(const LinearBlock& block, const float* sums, float* out) {
  F sum[N];
  for (int n = 0; n < N; ++n) {
    sum[n] = Vec::load(sums + n * kPanelOutputs);
    if (block.bias != nullptr) sum[n] = Vec::add(sum[n], Vec::load(block.bias + n * kPanelOutputs));
  }
  if (block.end == LinearEnd::kSwiGLU) {
    Vec::store(out, Vec::mul(silu(sum[0]), sum[N - 1]));
    return;
  }
  for (int n = 0; n < N; ++n, out += kPanelOutputs) {
    Vec::store(out, block.end == LinearEnd::kAdd ? Vec::add(Vec::load(out), sum[n]) : sum[n]);
  }
}

// Up to 32 rows, 16 M at most, times N panels.
template <int M, int N>
void multiply_block(const LinearBlock& block, int rows) {
  zero_tile<0>();
  if constexpr (N > 1) zero_tile<1>();
  if constexpr (M > 1) zero_tile<2>();
  if constexpr (M > 1 && N > 1) zero_tile<3>();
  int64_t word = 0;
  for (; word + kTileWords <= block.words; word += kTileWords) {
    add_words<M, N>(block.x + word, block.x_stride, block.panels + word * kPanelOutputs, block.panel_stride);
  }
  if (word < block.words) add_last_words<M, N>(block, rows, word);

  constexpr int kColumns = N * kPanelOutputs;
  alignas(64) float sums[M * kTileRows][kColumns];
  store_tile<0>(sums[0], sizeof(sums[0]));
  if constexpr (N > 1) store_tile<1>(sums[0] + kPanelOutputs, sizeof(sums[0]));
  if constexpr (M > 1) store_tile<2>(sums[kTileRows], sizeof(sums[0]));
  if constexpr (M > 1 && N > 1) store_tile<3>(sums[kTileRows] + kPanelOutputs, sizeof(sums[0]));
  for (int row = 0; row < rows; ++row) finish_row<N>(block, sums[row], block.out + row * block.out_stride);
}

// Rows [begin, end) in blocks of `rows`.
void multiply_blocks(const LinearBlock& all, int begin, int end, int rows, int num_panels) {
  if (begin == end) return;
  configure_tiles(tile_shapes(rows));
  for (int row = begin; row < end; row += rows) {
    LinearBlock block = all;
    block.x += row * all.x_stride;
    block.out += row * all.out_stride;
    const bool tall = rows > kTileRows, wide = num_panels > 1;
    (tall   ? wide ? multiply_block<2, 2> : multiply_block<2, 1>
     : wide ? multiply_block<1, 2>
            : multiply_block<1, 1>)(block, rows);
  }
  release_tiles();
}

void multiply_panels_tiled(const LinearBlock& block, int rows, int num_panels) {
  const int rest = rows % kBlockRows;
  multiply_blocks(block, 0, rows - rest, kBlockRows, num_panels);
  multiply_blocks(block, rows - rest, rows, rest, num_panels);
}

}  // namespace

constinit const LinearKernels kLinearBFloat16 = {kMaxRows, kMaxPanels, true, multiply_panels_tiled};

}  // namespace tts::amx
