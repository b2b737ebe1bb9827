// The eight AMX tile registers of up to 16 rows of 64 bytes. Included inside the anonymous namespace of the
// unit that uses them. csrc/tests/amx_shim has the same functions for machines without AMX.
//
// Written in assembler because GCC's intrinsics accept tile numbers only as literals, and do not declare that
// a load reads memory, so that an earlier store may be moved past it.
#pragma once

constexpr int kTileRows = 16;   // of a tile
constexpr int kTileWords = 16;  // per row of a tile

// The operand of LDTILECFG.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Configures tiles of these shapes, until release_tiles; a thread that keeps them pays at each context
// switch.
inline void configure_tiles(const TileShapes& shapes) { asm volatile("ldtilecfg %0" ::"m"(shapes)); }
inline void release_tiles() { asm volatile("tilerelease"); }

template <int kTile>
inline void zero_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}

// Rows are `stride` bytes apart.
template <int kTile>
inline void load_tile(const void* rows, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(rows), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
inline void store_tile(void* rows, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(rows), "r"(stride), "i"(kTile) : "memory");
}

// sum[m][n] += sum over k of a[m][k] . b[k][n], where a word of a and b is a bfloat16 pair. A sum's bits
// depend only on its a[m] and b[.][n].
template <int kSum, int kA, int kB>
inline void add_pair_products() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kA), "i"(kB));
}
