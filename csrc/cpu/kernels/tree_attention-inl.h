// Attention of one query block and KV head over one chunk of the path, the same code for every
// instruction-set level.
//
// Per tile of 256 positions: scores S = Q K^T of each segment, softmax of each row over the tile, acc += P V
// of each segment. A row's sums run over channels in order (S) and over its visible tokens in order (P V).
// Tokens that a row does not see are never multiplied, so unwritten or foreign slots cannot affect it.
//
// int8 pages: the K scale multiplies a page's scores, the V scale its probabilities before P V.
#pragma once

#include "cpu/kernels/attention_softmax-inl.h"
#ifdef TTS_TILES
#include "cpu/kernels/tile_attention-inl.h"
#endif

// Words of a row (S) or channels (P V) per pass; this many per page of a batch fit the L1 cache.
constexpr int kBlockWords = 64;

template <Product kProduct>
struct ProductTag {
  static constexpr Product kValue = kProduct;
};

template <Storage kStorage>
struct Chunk : ChunkSoftmax<kStorage> {
  using Base = ChunkBase<kStorage>;
  using Base::first_visible;
  using Base::head_dim;
  using Base::k_words;
  using Base::packed_k;
  using Base::packed_v;
  using Base::row_of;
  using Base::scratch;
  using Base::sees_all;
  using Base::spare_page;
  using Base::spare_row;
  using Base::state;
  using Base::task;
  using Base::v_words;
  using typename Base::Words;
  static constexpr int kBatchPages = Words::kBatchPages;
  static constexpr int kWordsPerPage = Words::kWordsPerPage;

#ifdef TTS_TILES
  mutable AttentionTiles tiles{};
#endif

  bool thin(const Segment& segment) const { return Base::thin(segment.query_begin, segment.query_end); }

  // Up to kBatchPages consecutive pages that queries of a segment see. count 0: no pages left.
  struct Batch {
    const Segment* segment;
    int page, count;       // page: index on the path
    const int32_t* pages;  // page ids in the pool
  };

  // The first batch from path page `page` on, in this segment or a later one.
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
  // page's operands; packed(page) is its address. While a batch is multiplied the next one is prefetched;
  // after the last batch, `after`, at the addresses from packed_after.
  template <class MakeWords, class Packed, class PackedAfter, class Body>
  void for_each_batch(const Segment* begin, const Segment* end, const MakeWords& words, const Packed& packed,
                      const Batch& after, const PackedAfter& packed_after, const Body& body) const {
    for (Batch batch = batch_from(begin, end, 0), next; batch.count > 0; batch = next) {
      next = batch_from(batch.segment, end, batch.page + batch.count);
      const bool is_thin = thin(*batch.segment);
      const uint32_t *operands[kBatchPages], *ahead[kBatchPages];
      for (int j = 0; j < batch.count; ++j) {
        operands[j] = words(batch.pages[j], is_thin, Base::wide_page(j));
        ahead[j] = j < next.count                       ? packed(next.pages[j])
                   : next.count == 0 && j < after.count ? packed_after(after.pages[j])
                                                        : packed(batch.pages[j]);
      }
      body(batch, operands, fetching(ahead, is_thin));
    }
  }

  static Ahead fetching(const uint32_t* const* pages, bool is_thin) {
    return {pages, Words::fetch_shift(is_thin)};
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

  // Calls body with the product for a segment's operands.
  template <class Body>
  static void with_product(bool is_thin, const Body& body) {
    if constexpr (Words::kWidens && Words::kThinRows > 0) {
      if (is_thin) return body(ProductTag<Words::kThinProduct>{});
    }
    body(ProductTag<Words::kProduct>{});
  }

  // Rows [row, row_end) of whole queries: S = Q K^T for `count` pages from path page `page` on, with ids
  // `pages`.
  template <Product kBy>
  void set_scores(int row, int row_end, int page, const int32_t* pages, const uint32_t* const* k, int count,
                  Ahead ahead = {}) const {
    const int q_words = Words::kPairs ? head_dim / 2 : head_dim;
    if constexpr (Words::kInt8) Base::keep_scales(row, row_end, page, pages, count);
    uint32_t* s = scratch.s + page % kTilePages * kPageSize;
#ifdef TTS_TILES
    if (head_dim % 32 == 0) {
      tiles.set_scores(scratch.q + row * head_dim, row_end - row, head_dim, k, count, ahead,
                       s + row * kScoreRow);
      return;
    }
#endif
    for (int begin = 0; begin < q_words; begin += kBlockWords) {
      const int end = min_of(begin + kBlockWords, q_words);
      for (int r = row, rows, i = 0; r < row_end; r += rows, ++i) {
        rows = even_part(row_end - r, Vec::kRows);
        for_columns(count, [&](int n, int column) {
          with_block<Vec::kRows, Vec::kColumns>(
              rows, n,
              ScoreRows<kBy>{scratch.q + r * head_dim, head_dim, k + column, begin, end,
                             s + r * kScoreRow + column * kPageSize, share(ahead, i, row_end - row, column)});
        });
      }
    }
  }

  // Share of block i in the prefetching for `rows` rows, for pages from `column` on.
  static Ahead share(Ahead ahead, int i, int rows, int column) {
    if (ahead.pages == nullptr) return {};
    return {ahead.pages + column, ahead.shift, i, (rows + Vec::kRows - 1) / Vec::kRows};
  }

  // Cuts `count` columns into register blocks.
  template <class Body>
  static void for_columns(int count, const Body& body) {
    for (int column = 0, n; column < count; column += n) {
      n = even_part(count - column, Vec::kColumns);
      body(n, column);
    }
  }

  // Rows [row, row_end): acc += P V over `steps` words of P for each of `count` pages; p_word is the index of
  // the first in a row of probabilities.
  template <Product kBy>
  void add_values(int row, int row_end, int p_word, const uint32_t* const* v, int count, int steps,
                  Ahead ahead = {}) const {
#ifdef TTS_TILES
    if (steps == kWordsPerPage) {
      tiles.add_values(scratch.s + row * kScoreRow + p_word, row_end - row, v, count, head_dim, ahead,
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

  // V operands of a page in the form for wide segments; v are its operands in the segment's own form.
  const uint32_t* whole_operands(const uint32_t* v, bool is_thin) const {
    if (!is_thin) return v;
    Words::widen(v, kPageSize / 2, head_dim, spare_page());
    return spare_page();
  }

  // Adds tokens [begin, end) of one page for one query; `v` has the page's operands.
  void add_partial_page(int query, int page, const uint32_t* v, int begin, int end) const {
    const int row = row_of(query), row_end = row + task.group;
    const int p_word = page % kTilePages * kWordsPerPage;
    const auto add = [&](int step, const uint32_t* words, int steps) {
      if (steps > 0) add_values<Words::kProduct>(row, row_end, p_word + step, &words, 1, steps);
    };
    if constexpr (!Words::kPairs) {
      add(begin, v + begin * head_dim, end - begin);
    } else {
      // If one token of a pair is visible, a copy with the other token zeroed is multiplied.
      uint32_t* masked = spare_row();
      const auto add_half = [&](int pair, uint32_t mask) {
        for (int c = 0; c < head_dim; ++c) masked[c] = v[pair * head_dim + c] & mask;
        add(pair, masked, 1);
      };
      if (begin % 2 != 0) add_half(begin++ / 2, 0xffff0000u);
      add(begin / 2, v + begin / 2 * head_dim, end / 2 - begin / 2);
      if (end % 2 != 0 && end > begin) add_half(end / 2, 0x0000ffffu);
    }
  }

  // Finally prefetches the first keys of segments [end, next_end).
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

  // Adds pages for queries that see all of them.
  void add_pages(const Segment& segment, int query, int query_end, int page, const uint32_t* const* v,
                 int count, Ahead ahead = {}) const {
    with_product(thin(segment), [&](auto product) {
      add_values<product.kValue>(row_of(query), row_of(query_end), page % kTilePages * kWordsPerPage, v,
                                 count, kWordsPerPage, ahead);
    });
  }

  // Adds a page for queries of which some see it only in part, or not at all.
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

  // Adds the tokens of a page that a query sees.
  void add_part(const Segment& segment, int query, int page, const uint32_t* v) const {
    const int begin = max_of(first_visible(query) - page * kPageSize, 0);
    const int end = min_of(task.position[query] + 1 - page * kPageSize, kPageSize);
    if (begin >= end) return;
    add_partial_page(query, page, whole_operands(v, thin(segment)), begin, end);
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
      this->softmax(tile);
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
  if (!is_pairs(kStorage) && dtype == DType::kBFloat16) {
    for (int c = 0; c < head_dim; ++c) words[c] = uint32_t{static_cast<const uint16_t*>(row)[c]} << 16;
  } else {
    __builtin_memcpy(words, row, static_cast<unsigned>(head_dim) * (is_pairs(kStorage) ? 2 : 4));
  }
}

#include "cpu/kernels/sparse_attention-inl.h"

template <Storage kStorage>
constexpr AttentionKernels attention_kernels() {
  return {pack_q<kStorage>, attend_chunk<kStorage>, attend_chunk_sparse<kStorage>};
}
