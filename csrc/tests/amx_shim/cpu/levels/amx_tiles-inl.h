// csrc/cpu/levels/amx_tiles-inl.h for machines without AMX: tiles in memory, with the arithmetic of the
// instruction set manual (except for denormals). The program ends where the processor would raise a fault.
// Included after vec_avx512-inl.h.
#pragma once

constexpr int kTileRows = 16, kTileWords = 16;

struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

struct Tiles {
  TileShapes shapes;
  bool configured = false;
  uint32_t words[8][kTileRows][kTileWords];

  int rows(int tile) const {
    expect(configured && shapes.rows[tile] > 0);
    return shapes.rows[tile];
  }
  int row_words(int tile) const { return shapes.row_bytes[tile] / 4; }

  static void expect(bool condition) {
    if (!condition) __builtin_trap();
  }
};

inline thread_local Tiles tiles;

// Nothing else here uses tiles, so tiles that are already configured were not released.
inline void configure_tiles(const TileShapes& shapes) {
  Tiles::expect(!tiles.configured && shapes.palette == 1);
  for (int tile = 0; tile < 16; ++tile) {
    Tiles::expect(shapes.rows[tile] <= (tile < 8 ? kTileRows : 0) && shapes.row_bytes[tile] <= 64);
    Tiles::expect((shapes.rows[tile] == 0) == (shapes.row_bytes[tile] == 0));
  }
  tiles = {shapes, true, {}};
}
inline void release_tiles() { tiles.configured = false; }

template <int kTile>
void zero_tile() {
  for (int m = 0; m < tiles.rows(kTile); ++m) __builtin_memset(tiles.words[kTile][m], 0, 64);
}

template <int kTile>
void load_tile(const void* rows, int64_t stride) {
  for (int m = 0; m < tiles.rows(kTile); ++m) {
    __builtin_memcpy(tiles.words[kTile][m], static_cast<const char*>(rows) + m * stride,
                     tiles.shapes.row_bytes[kTile]);
  }
}
template <int kTile>
void store_tile(void* rows, int64_t stride) {
  for (int m = 0; m < tiles.rows(kTile); ++m) {
    __builtin_memcpy(static_cast<char*>(rows) + m * stride, tiles.words[kTile][m],
                     tiles.shapes.row_bytes[kTile]);
  }
}

template <int kSum, int kA, int kB>
void add_pair_products() {
  Tiles::expect(tiles.rows(kSum) == tiles.rows(kA) && tiles.row_words(kA) == tiles.rows(kB) &&
                tiles.row_words(kSum) == tiles.row_words(kB));
  Tiles::expect(tiles.row_words(kSum) == Vec::kLanes);
  for (int m = 0; m < tiles.rows(kSum); ++m) {
    Vec::F low = Vec::set1(0.0f), high = low;
    for (int k = 0; k < tiles.row_words(kA); ++k) {
      const Vec::F a = Vec::broadcast(&tiles.words[kA][m][k]), b = Vec::load(tiles.words[kB][k]);
      low = Vec::fma(Vec::low_half(a), Vec::low_half(b), low);
      high = Vec::fma(Vec::high_half(a), Vec::high_half(b), high);
    }
    uint32_t* sum = tiles.words[kSum][m];
    Vec::store(sum, Vec::add(Vec::load(sum), Vec::add(low, high)));
  }
}
