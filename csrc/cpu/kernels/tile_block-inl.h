// Blocks of sums on AMX tiles: up to 32 rows times 2 columns, or up to 16 rows times 4. A column is 16
// outputs, tokens or channels.
#pragma once

#include "cpu/levels/amx_tiles-inl.h"

constexpr int kBlockRows = 2 * kTileRows;

// Tiles 0 .. 3 hold sums, row by row; then one or two hold 16 rows each, and the rest hold columns.
constexpr int kRowsTile = 4;

// Tile shapes for blocks of `rows` rows and products of `words` words.
inline TileShapes block_shapes(int rows, int words) {
  const bool two = rows > kTileRows;
  const int first = two ? kTileRows : rows, second = rows - kTileRows;
  TileShapes shapes;
  const auto set = [&](int tile, int tile_rows, int tile_words) {
    shapes.rows[tile] = static_cast<uint8_t>(tile_rows);
    shapes.row_bytes[tile] = static_cast<uint16_t>(4 * tile_words);
  };
  for (int n = 0; n < 4; ++n) set(n, two && n > 1 ? second : first, 16);
  set(kRowsTile, first, words);
  for (int tile = kRowsTile + 1; tile < 8; ++tile) set(tile, words, 16);
  if (two) set(kRowsTile + 1, second, words);
  return shapes;
}

template <int kTile>
struct TileTag {
  static constexpr int kIndex = kTile;
};

// Calls body(tile, its first row, its column) for each tile of sums.
template <int M, int N, class Body>
inline void for_sums(const Body& body) {
  body(TileTag<0>{}, 0, 0);
  if constexpr (N > 1) body(TileTag<1>{}, 0, 1);
  if constexpr (N > 2) {
    body(TileTag<2>{}, 0, 2);
    body(TileTag<3>{}, 0, 3);
  }
  if constexpr (M > 1) body(TileTag<2>{}, kTileRows, 0);
  if constexpr (M > 1 && N > 1) body(TileTag<3>{}, kTileRows, 1);
}

// Sums += words of 16 M rows times the same words of N columns. Rows are `stride` bytes apart, the second 16
// rows start at `second`; columns are [words][16], `column_stride` bytes apart.
template <int M, int N>
inline void add_tiles(const uint32_t* rows, const uint32_t* second, int64_t stride,
                      const uint32_t* const* columns, int64_t column_stride) {
  constexpr int kColumnTile = kRowsTile + M;
  load_tile<kRowsTile>(rows, stride);
  load_tile<kColumnTile>(columns[0], column_stride);
  add_pair_products<0, kRowsTile, kColumnTile>();
  if constexpr (N > 1) {
    load_tile<kColumnTile + 1>(columns[1], column_stride);
    add_pair_products<1, kRowsTile, kColumnTile + 1>();
  }
  if constexpr (N > 2) {
    load_tile<kColumnTile + 2>(columns[2], column_stride);
    add_pair_products<2, kRowsTile, kColumnTile + 2>();
    load_tile<kColumnTile>(columns[3], column_stride);
    add_pair_products<3, kRowsTile, kColumnTile>();
  }
  if constexpr (M > 1) {
    load_tile<kRowsTile + 1>(second, stride);
    add_pair_products<2, kRowsTile + 1, kColumnTile>();
    if constexpr (N > 1) add_pair_products<3, kRowsTile + 1, kColumnTile + 1>();
  }
}

// Calls block.run<M, N>(column) for all columns of `rows` rows.
template <class Block>
inline void for_columns_of(int rows, int columns, const Block& block) {
  const bool two = rows > kTileRows;
  int n = 0;
  for (; !two && n + 4 <= columns; n += 4) block.template run<1, 4>(n);
  for (; n + 2 <= columns; n += 2) two ? block.template run<2, 2>(n) : block.template run<1, 2>(n);
  if (n < columns) two ? block.template run<2, 1>(n) : block.template run<1, 1>(n);
}
