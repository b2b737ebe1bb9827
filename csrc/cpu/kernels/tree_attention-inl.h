// Attention of one query block and KV head over one chunk of the path: the same code for every
// instruction-set level.
//
// Per tile of 256 positions: scores S = Q K^T of each segment, softmax of each row over the tile, acc += P V
// of each segment. A row's sums run over channels in order (S) and over its visible tokens in order (P V);
// tokens that it does not see are never multiplied, so whatever lies in unwritten or foreign slots cannot
// reach it.
//
// int8 pages: a page's K scale multiplies its scores, its V scale the probabilities before P V.
#pragma once

#include "cpu/kernels/alibi-inl.h"
#include "cpu/kernels/micro_kernels-inl.h"
#include "cpu/kernels/page_words-inl.h"
#include "cpu/kernels/vec_math-inl.h"
#ifdef TTS_TILES
#include "cpu/kernels/tile_attention-inl.h"
#endif

constexpr int kThinRows = 8;   // up to so many rows, widening a page beforehand does not pay
constexpr int kWidePages = 4;  // widened together
// Words of a row (S) or channels (P V) per pass: this many of each page of a batch fit the L1 cache.
constexpr int kBlockWords = 64;
// Pages multiplied together.
#ifdef TTS_TILES
constexpr int kBatchPages = 16;  // 4 make fan-outs 5 to 8 % slower
#else
constexpr int kBatchPages = kWidePages;
#endif

template <Product kProduct>
struct ProductTag {
  static constexpr Product kValue = kProduct;
};

template <Storage kStorage>
struct Chunk {
  using Element = typename ElementOf<kStorage>::Type;
  static constexpr bool kPairs = kStorage == Storage::kPairs;
  static constexpr bool kInt8 = kStorage == Storage::kInt8;
  static constexpr bool kWidens = kInt8 || kStorage == Storage::kWideBFloat16;
  static constexpr Product kProduct = kPairs ? Product::kPairs : Product::kFloats;
  static constexpr Product kThinProduct = kInt8 ? Product::kBytes : Product::kHalves;  // where kWidens
  static constexpr int kWordsPerPage = kPairs ? kPageSize / 2 : kPageSize;  // of a row of probabilities

  const ChunkTask& task;
  const ChunkScratch& scratch;
  const AttentionState& state;
  const int head_dim = task.kv.head_dim;
#ifdef TTS_TILES
  mutable AttentionTiles tiles{};
#endif

  // A query sees the positions [first_visible, position].
  int first_visible(int query) const {
    const int position = task.position[query];
    const int first = task.window > 0 ? max_of(position - task.window + 1, 0) : 0;
    return task.attention_chunk > 0 ? max_of(first, position - position % task.attention_chunk) : first;
  }

  int row_of(int query) const { return (query - task.query_begin) * task.group; }

  bool thin(const Segment& segment) const {
    return kWidens && row_of(segment.query_end) - row_of(segment.query_begin) <= kThinRows;
  }

  const uint32_t* packed_k(int page) const {
    return reinterpret_cast<const uint32_t*>(k_page<Element>(task.kv, page, task.kv_head));
  }
  const uint32_t* packed_v(int page) const {
    return reinterpret_cast<const uint32_t*>(v_page<Element>(task.kv, page, task.kv_head));
  }

  // Operand words of a K or V page; for a thin segment as it lies in the pool.
  const uint32_t* k_words(int page, bool thin, uint32_t* wide) const {
    if (!kWidens || thin) return packed_k(page);
    widen(packed_k(page), head_dim / 2, kPageSize, wide);
    return wide;
  }
  const uint32_t* v_words(int page, bool thin, uint32_t* wide) const {
    if (!kWidens || thin) return packed_v(page);
    widen_v(packed_v(page), wide);
    return wide;
  }
  void widen_v(const uint32_t* packed, uint32_t* wide) const { widen(packed, kPageSize / 2, head_dim, wide); }
  // A page, of bfloat16 `rows` of `width` words, as floats.
  void widen(const uint32_t* packed, int rows, int width, uint32_t* wide) const {
    if constexpr (kInt8) {
      widen_bytes(reinterpret_cast<const int8_t*>(packed), kPageSize * head_dim, wide);
    } else {
      widen_rows(packed, rows, width, wide);
    }
  }

  // Up to kBatchPages consecutive pages that queries of a segment see. count 0: none are left.
  struct Batch {
    const Segment* segment;
    int page, count;       // page: index on the path
    const int32_t* pages;  // their numbers in the pool
  };

  // The first batch from `page` of the path on, of this segment or else of those after it.
  Batch batch_from(const Segment* segment, const Segment* segment_end, int page) const {
    for (; segment < segment_end; ++segment) {
      int first_token = first_visible(segment->query_begin), last_token = 0;
      for (int query = segment->query_begin; query < segment->query_end; ++query) {
        first_token = min_of(first_token, first_visible(query));
        last_token = max_of(last_token, task.position[query]);
      }
      const int begin = max_of(max_of(segment->first_page, first_token / kPageSize), page);
      const int end = min_of(segment->first_page + segment->num_pages, last_token / kPageSize + 1);
      if (begin < end) {
        const int32_t* pages = task.pages + segment->page_offset - segment->first_page + begin;
        return {segment, begin, even_part(end - begin, kBatchPages), pages};
      }
      page = 0;
    }
    return {segment, 0, 0, nullptr};
  }

  // Calls body(batch, operands, ahead) for all batches of the segments. words(page, thin, buffer) makes a
  // page's operands, packed(page) says where it lies. While a batch is multiplied the next one is fetched, in
  // the end `after`, of which packed_after says where it lies.
  template <class Words, class Packed, class PackedAfter, class Body>
  void for_each_batch(const Segment* begin, const Segment* end, const Words& words, const Packed& packed,
                      const Batch& after, const PackedAfter& packed_after, const Body& body) const {
    for (Batch batch = batch_from(begin, end, 0), next; batch.count > 0; batch = next) {
      next = batch_from(batch.segment, end, batch.page + batch.count);
      const bool is_thin = thin(*batch.segment);
      const uint32_t *operands[kBatchPages], *ahead[kBatchPages];
      for (int j = 0; j < batch.count; ++j) {
        operands[j] = words(batch.pages[j], is_thin, scratch.operands + j * kPageSize * head_dim);
        ahead[j] = j < next.count                       ? packed(next.pages[j])
                   : next.count == 0 && j < after.count ? packed_after(after.pages[j])
                                                        : packed(batch.pages[j]);
      }
      body(batch, operands, fetching(ahead, is_thin));
    }
  }

  // Pages in memory, of which operands are words, or narrower elements that were or will be widened to words.
  static Ahead fetching(const uint32_t* const* pages, bool is_thin) {
    constexpr int kShift = sizeof(Element) == 4 ? 0 : sizeof(Element) == 2 ? 1 : 2;
    const bool words = kPairs || (is_thin && !kInt8);
    return {pages, words ? 0 : kShift};
  }

  void scores(const Segment* begin, const Segment* end) const {
    const auto words = [&](int page, bool is_thin, uint32_t* wide) { return k_words(page, is_thin, wide); };
    const auto k = [&](int page) { return packed_k(page); };
    const auto v = [&](int page) { return packed_v(page); };
    for_each_batch(begin, end, words, k, batch_from(begin, end, 0), v,
                   [&](const Batch& batch, const uint32_t* const* operands, Ahead ahead) {
                     const Segment& segment = *batch.segment;
                     with_product(thin(segment), [&](auto product) {
                       set_scores<product.kValue>(row_of(segment.query_begin), row_of(segment.query_end),
                                                  batch.page, batch.pages, operands, batch.count, ahead);
                     });
                   });
  }

  // Calls body with the product by which a segment's operands are multiplied.
  template <class Body>
  static void with_product(bool is_thin, const Body& body) {
    if constexpr (kWidens) {
      if (is_thin) return body(ProductTag<kThinProduct>{});
    }
    body(ProductTag<kProduct>{});
  }

  // Rows [row, row_end) of whole queries: S = Q K^T of `count` pages from `page` of the path on, whose
  // numbers in the pool are `pages`.
  template <Product kBy>
  void set_scores(int row, int row_end, int page, const int32_t* pages, const uint32_t* const* k, int count,
                  Ahead ahead = {}) const {
    const int q_words = kPairs ? head_dim / 2 : head_dim;
    float k_scales[kBatchPages];
    if constexpr (kInt8) get_scales(row, row_end, page, pages, count, k_scales);
    uint32_t* s = scratch.s + page % kTilePages * kPageSize;
#ifdef TTS_TILES
    if (head_dim % 32 == 0) {
      tiles.set_scores(scratch.q + row * head_dim, row_end - row, head_dim, k, count, ahead.pages,
                       s + row * kScoreRow);
      return;
    }
#endif
    for (int begin = 0; begin < q_words; begin += kBlockWords) {
      const int end = min_of(begin + kBlockWords, q_words);
      for (int r = row, rows, i = 0; r < row_end; r += rows, ++i) {
        rows = even_part(row_end - r, Vec::kRows);
        for_columns(count, [&](int n, int column) {
          const float* scales = kInt8 && end == q_words ? k_scales + column : nullptr;
          with_block<Vec::kRows, Vec::kColumns>(
              rows, n,
              ScoreRows<kBy>{scratch.q + r * head_dim, head_dim, k + column, begin, end,
                             s + r * kScoreRow + column * kPageSize, scales,
                             share(ahead, i, row_end - row, column)});
        });
      }
    }
  }

  // What the i-th block of `rows` rows fetches, pages from `column` on.
  static Ahead share(Ahead ahead, int i, int rows, int column) {
    if (ahead.pages == nullptr) return {};
    return {ahead.pages + column, ahead.shift, i, (rows + Vec::kRows - 1) / Vec::kRows};
  }

  // Scales of pages as set_scores has them: those of K, and those of V into the rows' tile for softmax_row.
  void get_scales(int row, int row_end, int page, const int32_t* pages, int count, float* k_scales) const {
    for (int j = 0; j < count; ++j) {
      const float* scales = page_scales(task.kv, pages[j], task.kv_head);
      k_scales[j] = scales[0];
      for (int query = row / task.group; query < row_end / task.group; ++query) {
        scratch.v_scales[query * kTilePages + (page + j) % kTilePages] = scales[1];
      }
    }
  }

  // Cuts `count` columns into register blocks.
  template <class Body>
  static void for_columns(int count, const Body& body) {
    for (int column = 0, n; column < count; column += n) {
      n = even_part(count - column, Vec::kColumns);
      body(n, column);
    }
  }

  // Rows [row, row_end): acc += P V over `steps` words of P for each of `count` pages; p_word is the first
  // one's index in a row of probabilities.
  template <Product kBy>
  void add_values(int row, int row_end, int p_word, const uint32_t* const* v, int count, int steps,
                  Ahead ahead = {}) const {
#ifdef TTS_TILES
    if (steps == kWordsPerPage) {
      tiles.add_values(scratch.s + row * kScoreRow + p_word, row_end - row, v, count, head_dim, ahead.pages,
                       state.acc + row * head_dim);
      return;
    }
#endif
    const int blocks = head_dim / 16, pass = kBlockWords / 16;
    for (int pass_begin = 0, pass_blocks; pass_begin < blocks; pass_begin += pass_blocks) {
      pass_blocks = even_part(blocks - pass_begin, pass);
      for (int r = row, rows, i = 0; r < row_end; r += rows, ++i) {
        rows = even_part(row_end - r, Vec::kRows);
        for_columns(pass_blocks, [&](int n, int column) {
          const int channel = (pass_begin + column) * 16;
          with_block<Vec::kRows, Vec::kColumns>(
              rows, n,
              ValueRows<kBy>{scratch.s + r * kScoreRow + p_word, v, count, steps, channel, head_dim,
                             state.acc + r * head_dim + channel, share(ahead, i, row_end - row, 0)});
        });
      }
    }
  }

  // The tokens [begin, end) of one page for one query, `v` being the page's operands.
  void add_partial_page(int query, int page, const uint32_t* v, int begin, int end) const {
    const int row = row_of(query), row_end = row + task.group;
    const int p_word = page % kTilePages * kWordsPerPage;
    const auto add = [&](int step, const uint32_t* words, int steps) {
      if (steps > 0) add_values<kProduct>(row, row_end, p_word + step, &words, 1, steps);
    };
    if constexpr (!kPairs) {
      add(begin, v + begin * head_dim, end - begin);
    } else {
      // A pair of which one token is visible is multiplied as a copy with the other zeroed.
      uint32_t* masked = scratch.operands + kWidePages * kPageSize * head_dim;
      const auto add_half = [&](int pair, uint32_t mask) {
        for (int c = 0; c < head_dim; ++c) masked[c] = v[pair * head_dim + c] & mask;
        add(pair, masked, 1);
      };
      if (begin % 2 != 0) add_half(begin++ / 2, 0xffff0000u);
      add(begin / 2, v + begin / 2 * head_dim, end / 2 - begin / 2);
      if (end % 2 != 0 && end > begin) add_half(end / 2, 0x0000ffffu);
    }
  }

  // At last the first keys of the segments [end, next_end) are fetched.
  void values(const Segment* begin, const Segment* end, const Segment* next_end) const {
    const auto words = [&](int page, bool is_thin, uint32_t* wide) { return v_words(page, is_thin, wide); };
    const auto k = [&](int page) { return packed_k(page); };
    const auto v = [&](int page) { return packed_v(page); };
    for_each_batch(begin, end, words, v, batch_from(end, next_end, 0), k,
                   [&](const Batch& batch, const uint32_t* const* operands, Ahead ahead) {
                     add_batch(batch, operands, ahead);
                   });
  }

  void add_batch(const Batch& batch, const uint32_t* const* v, Ahead ahead) const {
    const Segment& segment = *batch.segment;
    const auto sees_batch = [&](int query) { return sees_all(query, batch.page, batch.page + batch.count); };
    for (int query = segment.query_begin, end; query < segment.query_end; query = end) {
      const bool all = sees_batch(query);
      for (end = query + 1; end < segment.query_end && sees_batch(end) == all;) ++end;
      if (all) {
        add_pages(segment, query, end, batch.page, v, batch.count, ahead);
        ahead = {};
        continue;
      }
      for (int j = 0; j < batch.count; ++j) add_page(segment, query, end, batch.page + j, v[j]);
    }
  }

  // For queries that see all of these pages.
  void add_pages(const Segment& segment, int query, int query_end, int page, const uint32_t* const* v,
                 int count, Ahead ahead = {}) const {
    with_product(thin(segment), [&](auto product) {
      add_values<product.kValue>(row_of(query), row_of(query_end), page % kTilePages * kWordsPerPage, v,
                                 count, kWordsPerPage, ahead);
    });
  }

  // For queries some of which see a page in part, or not at all.
  void add_page(const Segment& segment, int query, int query_end, int page, const uint32_t* v) const {
    for (int end; query < query_end; query = end) {
      for (end = query; end < query_end && sees_all(end, page, page + 1);) ++end;
      if (end > query) {
        add_pages(segment, query, end, page, &v, 1);
      } else {
        add_part(segment, end++, page, v);
      }
    }
  }

  // The tokens of a page that a query sees.
  void add_part(const Segment& segment, int query, int page, const uint32_t* v) const {
    const int begin = max_of(first_visible(query) - page * kPageSize, 0);
    const int end = min_of(task.position[query] + 1 - page * kPageSize, kPageSize);
    if (begin >= end) return;
    if (thin(segment)) {
      uint32_t* wide = scratch.operands + kWidePages * kPageSize * head_dim;
      widen_v(v, wide);
      v = wide;
    }
    add_partial_page(query, page, v, begin, end);
  }

  // Whether the query sees every token of pages [page, page_end) of its path.
  bool sees_all(int query, int page, int page_end) const {
    return first_visible(query) <= page * kPageSize && task.position[query] >= page_end * kPageSize - 1;
  }

  // In place of the scores, as what P V multiplies: words t.. or, in pairs, t / 2.. (which the reads have
  // passed).
  template <class V>
  static void store_probabilities(uint32_t* s, int t, F p) {
    if constexpr (kPairs) {
      V::store_bf16(s + t / 2, p);
    } else {
      V::store(s + t, p);
    }
  }

  // Softmax of one row over tokens [begin, end) of the tile: scores become probabilities in place. columns:
  // of the tile's pages on the path. page_sums (may be null): gets the sum of the probabilities of each page.
  void softmax_row(int row, int begin, int end, const int* columns, float* page_sums) const {
    uint32_t* s = scratch.s + row * kScoreRow;
    // Whole pages from here on: invisible tokens at either edge are overwritten with -inf.
    const int page_begin = begin / kPageSize * kPageSize,
              page_end = (end + kPageSize - 1) / kPageSize * kPageSize;
    float scale = task.scale * 1.44269504f;  // to units of log2
    if (task.soft_cap > 0.0f) {
      const F inner = Vec::set1(task.scale / task.soft_cap), outer = Vec::set1(task.soft_cap);
      for (int t = page_begin; t < page_end; t += Vec::kLanes) {
        Vec::store(s + t, Vec::mul(tanh_of(Vec::mul(Vec::load(s + t), inner)), outer));
      }
      scale = 1.44269504f;
    }
    if (task.slopes != nullptr) {
      subtract_slope(task.slopes[row % task.group], task.position[task.query_begin + row / task.group], scale,
                     columns, page_begin / kPageSize, page_end / kPageSize, s);
      scale = 1.0f;
    }
    constexpr uint32_t kMinusInfinity = 0xff800000u;
    for (int t = page_begin; t < begin; ++t) s[t] = kMinusInfinity;
    for (int t = end; t < page_end; ++t) s[t] = kMinusInfinity;

    const F largest = largest_of(s + page_begin, page_end - page_begin);
    const float tile_m = Vec::max_of(largest) * scale, old_m = state.m[row];
    const float m = tile_m > old_m ? tile_m : old_m;

    const F factor = Vec::set1(scale), minus_m = Vec::set1(-m);
    const float* v_scales = scratch.v_scales + row / task.group * kTilePages;
    F sum = Vec::set1(0.0f);
    for (int t = page_begin; t < page_end; t += Vec::kLanes) {
      F p = exp2_flushed(Vec::fma(Vec::load(s + t), factor, minus_m));
      sum = Vec::add(sum, p);
      if (page_sums != nullptr) page_sums[t / kPageSize] += Vec::sum(p);
      if constexpr (kInt8) p = Vec::mul(p, Vec::set1(v_scales[t / kPageSize]));
      store_probabilities<Vec>(s, t, p);
    }
    float l = Vec::sum(sum);
    if (m != old_m) {
      // Before the first tile m is -inf and l, acc are 0: the factor 2^-inf is 0.
      const F decay = exp2_flushed(Vec::set1(old_m - m));
      float lanes[Vec::kLanes];
      Vec::store(lanes, decay);
      state.l[row] *= lanes[0];
      float* acc = state.acc + row * head_dim;
      for (int c = 0; c < head_dim; c += Vec::kLanes)
        Vec::store(acc + c, Vec::mul(Vec::load(acc + c), decay));
      state.m[row] = m;
    }
    state.l[row] += l;
  }

  void softmax(int tile) const {
    int columns[kTilePages];
    for (int page = 0; page < kTilePages; ++page) columns[page] = tile * kTilePages + page;
    for (int query = task.query_begin; query < task.query_end; ++query) {
      const int begin = max_of(first_visible(query) - tile * kTileTokens, 0);
      const int end = min_of(task.position[query] + 1 - tile * kTileTokens, kTileTokens);
      if (begin >= end) continue;
      for (int row = row_of(query); row < row_of(query + 1); ++row) {
        float page_sums[kTilePages] = {};
        softmax_row(row, begin, end, columns, task.mass != nullptr ? page_sums : nullptr);
        if (task.mass == nullptr) continue;
        for (int page = begin / kPageSize; page * kPageSize < end; ++page) {
          export_mass(row, tile, tile * kTilePages + page, page_sums[page]);
        }
      }
    }
  }

  void export_mass(int row, int tile, int column, float page_sum) const {
    const MassExport& mass = *task.mass;
    if (column >= mass.num_columns) return;
    mass.sums[row * mass.num_columns + column] = page_sum;
    mass.m[row * ((mass.num_columns + kTilePages - 1) / kTilePages) + tile] = state.m[row];
  }

  void clear_state() const {
    const int rows = row_of(task.query_end);
    for (int row = 0; row < rows; ++row) {
      state.m[row] = -__builtin_inff();
      state.l[row] = 0.0f;
    }
    for (int i = 0; i < rows * head_dim; ++i) state.acc[i] = 0.0f;
  }

  void run() const {
    clear_state();
    for (const Segment* segment = task.segment_begin; segment < task.segment_end;) {
      const int tile = segment->first_page / kTilePages;
      const Segment* tile_end = segment;
      while (tile_end < task.segment_end && tile_end->first_page / kTilePages == tile) ++tile_end;
      scores(segment, tile_end);
      softmax(tile);
      values(segment, tile_end, task.segment_end);
      segment = tile_end;
    }
  }
};

template <Storage kStorage>
void attend_chunk(const ChunkTask& task, const ChunkScratch& scratch, const AttentionState& state) {
  Chunk<kStorage>{task, scratch, state}.run();
}

template <Storage kStorage>
void pack_q(const void* row, DType dtype, int head_dim, uint32_t* words) {
  if (kStorage != Storage::kPairs && dtype == DType::kBFloat16) {
    for (int c = 0; c < head_dim; ++c) words[c] = uint32_t{static_cast<const uint16_t*>(row)[c]} << 16;
  } else {
    __builtin_memcpy(words, row, static_cast<unsigned>(head_dim) * (kStorage == Storage::kPairs ? 2 : 4));
  }
}

#include "cpu/kernels/sparse_attention-inl.h"

template <Storage kStorage>
constexpr AttentionKernels attention_kernels() {
  return {pack_q<kStorage>, attend_chunk<kStorage>, attend_chunk_sparse<kStorage>};
}
