// The two products of attention on AMX tiles, for bfloat16 pages that all rows see as a whole; included by
// the amx level before its tree_attention-inl.h. A page of keys is [head_dim / 2][16] pairs, one of values
// [8][head_dim]: what the tiles' product takes as they lie. Each page adds to a row's sums what depends on
// that row and page alone, in path order.

constexpr int kTilesAbreast = 4;  // of sums: columns of 16 tokens or channels
constexpr int kPageSteps = kPageSize / 2;

// Tiles 0 .. 3 are sums, then one each of:
constexpr int kQTile = 4, kKTile = 5, kPTile = 6, kVTile = 7;

template <int kTile>
struct TileTag {
  static constexpr int kIndex = kTile;
};

// Calls body(TileTag) for tiles 0 .. N - 1.
template <int N, class Body>
inline void for_sums(const Body& body) {
  if constexpr (N > 1) for_sums<N - 1>(body);
  body(TileTag<N - 1>{});
}

inline void fetch(const uint32_t* line) { __builtin_prefetch(line, 0, 2); }

// Scores of up to 16 rows against N pages.
struct ScoreBand {
  const uint32_t* q;
  int head_dim;
  const uint32_t* const* k;
  const uint32_t* const* ahead;  // pages to fetch meanwhile; null: none
  uint32_t* s;

  template <int N>
  void run() const {
    for_sums<N>([](auto n) { zero_tile<n.kIndex>(); });
    for (int word = 0; word < head_dim / 2; word += kTileWords) {
      load_tile<kQTile>(q + word, 4 * head_dim);
      for_sums<N>([&](auto n) {
        load_tile<kKTile>(k[n.kIndex] + word * kPageSize, 4 * kPageSize);
        add_pair_products<n.kIndex, kQTile, kKTile>();
        if (ahead == nullptr) return;
        for (int i = 0; i < kTileWords; ++i) fetch(ahead[n.kIndex] + (word + i) * kPageSize);
      });
    }
    for_sums<N>([&](auto n) { store_tile<n.kIndex>(s + n.kIndex * kPageSize, 4 * kTileTokens); });
  }
};

// acc += P V of up to 16 rows and 16 N channels.
struct ValueBand {
  const uint32_t* p;
  const uint32_t* const* v;
  int num_pages, channel, head_dim;
  const uint32_t* const* ahead;  // as in ScoreBand
  float* acc;

  template <int N>
  void run() const {
    for_sums<N>([&](auto n) { load_tile<n.kIndex>(acc + n.kIndex * 16, 4 * head_dim); });
    for (int page = 0; page < num_pages; ++page) {
      load_tile<kPTile>(p + page * kPageSteps, 4 * kTileTokens);
      for_sums<N>([&](auto n) {
        const int column = channel + n.kIndex * 16;
        load_tile<kVTile>(v[page] + column, 4 * head_dim);
        add_pair_products<n.kIndex, kPTile, kVTile>();
        if (ahead == nullptr) return;
        for (int i = 0; i < kPageSteps; ++i) fetch(ahead[page] + i * head_dim + column);
      });
    }
    for_sums<N>([&](auto n) { store_tile<n.kIndex>(acc + n.kIndex * 16, 4 * head_dim); });
  }
};

// The thread's tiles, configured for bands of so many rows as come; released with this.
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
    for (int page = 0, n; page < num_pages; page += n) {
      n = even_part(num_pages - page, kTilesAbreast);
      for_bands(rows, [&](int row) {
        with_rows<kTilesAbreast>(n, ScoreBand{q + row * head_dim, head_dim, k + page,
                                              row > 0 || ahead == nullptr ? nullptr : ahead + page,
                                              s + row * kTileTokens + page * kPageSize});
      });
    }
  }

  // acc[r] += p[r] V over the pages.
  void add_values(const uint32_t* p, int rows, const uint32_t* const* v, int num_pages, int head_dim,
                  const uint32_t* const* ahead, float* acc) {
    for (int channel = 0, n; channel < head_dim; channel += 16 * n) {
      n = min_of((head_dim - channel) / 16, kTilesAbreast);
      for_bands(rows, [&](int row) {
        with_rows<kTilesAbreast>(n, ValueBand{p + row * kTileTokens, v, num_pages, channel, head_dim,
                                              row > 0 ? nullptr : ahead, acc + row * head_dim + channel});
      });
    }
  }

 private:
  // Calls body(row) for the first row of each band, of even length, so that few bands need other shapes.
  template <class Body>
  void for_bands(int rows, const Body& body) {
    for (int row = 0, band; row < rows; row += band) {
      band = even_part(rows - row, kTileRows);
      use(band);
      body(row);
    }
  }

  void use(int rows) {
    if (rows == rows_) return;
    if (rows_ > 0) release_tiles();
    rows_ = rows;
    TileShapes shapes;
    const auto set = [&](int tile, int tile_rows, int words) {
      shapes.rows[tile] = static_cast<uint8_t>(tile_rows);
      shapes.row_bytes[tile] = static_cast<uint16_t>(4 * words);
    };
    for (int n = 0; n < kTilesAbreast; ++n) set(n, rows, 16);
    set(kQTile, rows, kTileWords);
    set(kKTile, kTileWords, kPageSize);
    set(kPTile, rows, kPageSteps);
    set(kVTile, kPageSteps, 16);
    configure_tiles(shapes);
  }

  int rows_ = 0;
};
