// The two products of attention on AMX tiles, for pages of bfloat16 pairs that all rows see entirely. A page
// of keys is [head_dim / 2][16] pairs, a page of values [8][head_dim]: the tile product reads both in place.
// Each page's contribution to a row's sums depends on that row and page alone and is added in path order.
#pragma once

#include "cpu/kernels/micro_kernels-inl.h"
#include "cpu/kernels/tile_block-inl.h"

constexpr int kPageSteps = kPageSize / 2;

// Scores of up to 32 rows against pages.
struct ScoreBlock {
  const uint32_t* q;
  int head_dim;
  const uint32_t* const* k;
  Ahead ahead;  // the same number of pages, prefetched whole
  uint32_t* s;

  // N pages from `page` on.
  template <int M, int N>
  void run(int page) const {
    for_sums<M, N>([](auto tile, int, int) { zero_tile<tile.kIndex>(); });
    for (int word = 0; word < head_dim / 2; word += kTileWords) {
      const uint32_t* pages[N];
      for (int n = 0; n < N; ++n) pages[n] = k[page + n] + word * kPageSize;
      add_tiles<M, N>(q + word, q + word + kTileRows * head_dim, 4 * head_dim, pages, 4 * kPageSize);
      for (int n = 0; ahead.pages != nullptr && n < N; ++n) {
        for (int i = 0; i < kTileWords; ++i) ahead.fetch(page + n, (word + i) * kPageSize);
      }
    }
    for_sums<M, N>([&](auto tile, int row, int n) {
      store_tile<tile.kIndex>(s + row * kScoreRow + (page + n) * kPageSize, 4 * kScoreRow);
    });
  }
};

// acc += P V of up to 32 rows.
struct ValueBlock {
  const uint32_t* p;
  const uint32_t* const* v;
  int num_pages, head_dim;
  Ahead ahead;  // as in ScoreBlock
  float* acc;

  // N columns of 16 channels.
  template <int M, int N>
  void run(int column) const {
    const int channel = column * 16;
    const int64_t stride = 4 * head_dim;
    for_sums<M, N>([&](auto tile, int row, int n) {
      load_tile<tile.kIndex>(acc + row * head_dim + channel + n * 16, stride);
    });
    for (int page = 0; page < num_pages; ++page) {
      const uint32_t *columns[N], *words = p + page * kPageSteps;
      for (int n = 0; n < N; ++n) columns[n] = v[page] + channel + n * 16;
      add_tiles<M, N>(words, words + kTileRows * kScoreRow, 4 * kScoreRow, columns, stride);
      for (int n = 0; ahead.pages != nullptr && n < N; ++n) {
        for (int i = 0; i < kPageSteps; ++i) ahead.fetch(page, i * head_dim + channel + n * 16);
      }
    }
    for_sums<M, N>([&](auto tile, int row, int n) {
      store_tile<tile.kIndex>(acc + row * head_dim + channel + n * 16, stride);
    });
  }
};

// The thread's tiles: configured as blocks need them, released by the destructor.
class AttentionTiles {
 public:
  AttentionTiles() = default;
  AttentionTiles(const AttentionTiles&) = delete;
  ~AttentionTiles() {
    if (rows_ > 0) release_tiles();
  }

  // s[r][16 n + t] = q[r] . k[n][.][t]; head_dim is a multiple of 32. `ahead`: as many pages, or none.
  void set_scores(const uint32_t* q, int rows, int head_dim, const uint32_t* const* k, int num_pages,
                  Ahead ahead, uint32_t* s) {
    for (int row = 0, n; row < rows; row += n, ahead = {}) {
      n = even_part(rows - row, kBlockRows);
      use(n, kTileWords);
      for_columns_of(n, num_pages, ScoreBlock{q + row * head_dim, head_dim, k, ahead, s + row * kScoreRow});
    }
  }

  // acc[r] += p[r] V over the pages.
  void add_values(const uint32_t* p, int rows, const uint32_t* const* v, int num_pages, int head_dim,
                  Ahead ahead, float* acc) {
    for (int row = 0, n; row < rows; row += n, ahead = {}) {
      n = even_part(rows - row, kBlockRows);
      use(n, kPageSteps);
      for_columns_of(n, head_dim / 16,
                     ValueBlock{p + row * kScoreRow, v, num_pages, head_dim, ahead, acc + row * head_dim});
    }
  }

 private:
  // Configures tiles for blocks of `rows` rows and products of `words` words.
  void use(int rows, int words) {
    if (rows == rows_ && words == words_) return;
    if (rows_ > 0) release_tiles();
    rows_ = rows;
    words_ = words;
    configure_tiles(block_shapes(rows, words));
  }

  int rows_ = 0, words_ = 0;
};
