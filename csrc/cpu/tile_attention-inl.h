// The two products of attention on AMX tiles, for bfloat16 pages that all rows see as a whole; included by
// the amx level before its tree_attention-inl.h. A page of keys is [head_dim / 2][16] pairs, one of values
// [8][head_dim]: what the tiles' product takes as they lie. Each page adds to a row's sums what depends on
// that row and page alone, in path order.

constexpr int kBandRows = 2 * kTileRows;
constexpr int kPageSteps = kPageSize / 2;

// Tiles 0 .. 3 are sums, tile 2 m + n those of the m-th 16 rows. Two each of rows of Q or P, and of K or V:
constexpr int kRowsTile = 4, kPageTile = 6;

inline void fetch(const uint32_t* line) { __builtin_prefetch(line, 0, 2); }

// sums of 16 M rows and N columns += rows times pages: rows [.][words] at `stride` bytes, and for each column
// [words][16] at `page_stride` bytes.
template <int M, int N>
inline void add_tiles(const uint32_t* rows, int64_t stride, const uint32_t* const* pages,
                      int64_t page_stride) {
  load_tile<kRowsTile>(rows, stride);
  load_tile<kPageTile>(pages[0], page_stride);
  add_pair_products<0, kRowsTile, kPageTile>();
  if constexpr (N > 1) {
    load_tile<kPageTile + 1>(pages[1], page_stride);
    add_pair_products<1, kRowsTile, kPageTile + 1>();
  }
  if constexpr (M > 1) {
    load_tile<kRowsTile + 1>(rows + kTileRows * stride / 4, stride);
    add_pair_products<2, kRowsTile + 1, kPageTile>();
    if constexpr (N > 1) add_pair_products<3, kRowsTile + 1, kPageTile + 1>();
  }
}

// Calls body(tile, first row, column) for each tile of sums.
template <int kTile>
struct TileTag {
  static constexpr int kIndex = kTile;
};
template <int M, int N, class Body>
inline void for_sums(const Body& body) {
  body(TileTag<0>{}, 0, 0);
  if constexpr (N > 1) body(TileTag<1>{}, 0, 1);
  if constexpr (M > 1) body(TileTag<2>{}, kTileRows, 0);
  if constexpr (M > 1 && N > 1) body(TileTag<3>{}, kTileRows, 1);
}

// Scores of a band of rows against N pages.
struct ScoreBlock {
  const uint32_t* q;
  int head_dim;
  const uint32_t* const* k;
  const uint32_t* const* ahead;  // pages to fetch meanwhile; null: none
  uint32_t* s;

  template <int M, int N>
  void run() const {
    for_sums<M, N>([](auto tile, int, int) { zero_tile<tile.kIndex>(); });
    for (int word = 0; word < head_dim / 2; word += kTileWords) {
      const uint32_t* pages[N];
      for (int n = 0; n < N; ++n) pages[n] = k[n] + word * kPageSize;
      add_tiles<M, N>(q + word, 4 * head_dim, pages, 4 * kPageSize);
      for (int n = 0; ahead != nullptr && n < N; ++n) {
        for (int i = 0; i < kTileWords; ++i) fetch(ahead[n] + (word + i) * kPageSize);
      }
    }
    for_sums<M, N>([&](auto tile, int row, int n) {
      store_tile<tile.kIndex>(s + row * kScoreRow + n * kPageSize, 4 * kScoreRow);
    });
  }
};

// acc += P V of a band of rows and 16 N channels.
struct ValueBlock {
  const uint32_t* p;
  const uint32_t* const* v;
  int num_pages, channel, head_dim;
  const uint32_t* const* ahead;  // as in ScoreBlock
  float* acc;

  template <int M, int N>
  void run() const {
    const int64_t stride = 4 * head_dim;
    for_sums<M, N>(
        [&](auto tile, int row, int n) { load_tile<tile.kIndex>(acc + row * head_dim + n * 16, stride); });
    for (int page = 0; page < num_pages; ++page) {
      const uint32_t* columns[N];
      for (int n = 0; n < N; ++n) columns[n] = v[page] + channel + n * 16;
      add_tiles<M, N>(p + page * kPageSteps, 4 * kScoreRow, columns, stride);
      for (int i = 0; ahead != nullptr && i < N * kPageSteps; ++i) {
        fetch(ahead[page] + i / N * head_dim + channel + i % N * 16);
      }
    }
    for_sums<M, N>(
        [&](auto tile, int row, int n) { store_tile<tile.kIndex>(acc + row * head_dim + n * 16, stride); });
  }
};

// The thread's tiles, configured as blocks come; released with this.
class AttentionTiles {
 public:
  AttentionTiles() = default;
  AttentionTiles(const AttentionTiles&) = delete;
  ~AttentionTiles() {
    if (rows_ > 0) release_tiles();
  }

  // s[r][16 n + t] = q[r] . k[n][.][t]; head_dim is a multiple of 32. `ahead`: as many pages, or null.
  void set_scores(const uint32_t* q, int rows, int head_dim, const uint32_t* const* k, int num_pages,
                  const uint32_t* const* ahead, uint32_t* s) {
    for (int row = 0, band; row < rows; row += band, ahead = nullptr) {
      band = even_part(rows - row, kBandRows);
      use(band, kTileWords);
      for (int page = 0; page < num_pages; page += 2) {
        run(band, num_pages - page,
            ScoreBlock{q + row * head_dim, head_dim, k + page, ahead == nullptr ? nullptr : ahead + page,
                       s + row * kScoreRow + page * kPageSize});
      }
    }
  }

  // acc[r] += p[r] V over the pages.
  void add_values(const uint32_t* p, int rows, const uint32_t* const* v, int num_pages, int head_dim,
                  const uint32_t* const* ahead, float* acc) {
    for (int row = 0, band; row < rows; row += band, ahead = nullptr) {
      band = even_part(rows - row, kBandRows);
      use(band, kPageSteps);
      for (int channel = 0; channel < head_dim; channel += 2 * 16) {
        run(band, (head_dim - channel) / 16,
            ValueBlock{p + row * kScoreRow, v, num_pages, channel, head_dim, ahead,
                       acc + row * head_dim + channel});
      }
    }
  }

 private:
  template <class Block>
  static void run(int rows, int columns, const Block& block) {
    if (rows > kTileRows) {
      columns > 1 ? block.template run<2, 2>() : block.template run<2, 1>();
    } else {
      columns > 1 ? block.template run<1, 2>() : block.template run<1, 1>();
    }
  }

  // For bands of so many rows, times pages of so many words.
  void use(int rows, int words) {
    if (rows == rows_ && words == words_) return;
    if (rows_ > 0) release_tiles();
    rows_ = rows;
    words_ = words;
    TileShapes shapes;
    const auto set = [&](int tile, int tile_rows, int tile_words) {
      shapes.rows[tile] = static_cast<uint8_t>(tile_rows);
      shapes.row_bytes[tile] = static_cast<uint16_t>(tile_rows > 0 ? 4 * tile_words : 0);
    };
    for (int m = 0; m < 2; ++m) {
      const int tile_rows = m == 0 ? min_of(rows, kTileRows) : max_of(rows - kTileRows, 0);
      set(2 * m, tile_rows, 16);
      set(2 * m + 1, tile_rows, 16);
      set(kRowsTile + m, tile_rows, words);
      set(kPageTile + m, words, 16);
    }
    configure_tiles(shapes);
  }

  int rows_ = 0, words_ = 0;
};
