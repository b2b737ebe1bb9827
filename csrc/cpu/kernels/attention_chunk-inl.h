// What attention over a chunk of the path works on: rows and what they see, pages as operands.
#pragma once

#include "cpu/kernels/page_words-inl.h"
#include "cpu/kernels/tree_attention_kernels.h"

template <Storage kStorage>
struct ChunkBase {
  using Words = PageWords<kStorage>;
  using Element = typename Words::Element;

  const ChunkTask& task;
  const ChunkScratch& scratch;
  const AttentionState& state;
  const int head_dim = task.kv.head_dim;

  // A query sees the positions [first_visible, position].
  int first_visible(int query) const {
    const int position = task.position[query];
    const int first = task.window > 0 ? max_of(position - task.window + 1, 0) : 0;
    return task.attention_chunk > 0 ? max_of(first, position - position % task.attention_chunk) : first;
  }

  // Whether the query sees every token of pages [page, page_end) of its path.
  bool sees_all(int query, int page, int page_end) const {
    return first_visible(query) <= page * kPageSize && task.position[query] >= page_end * kPageSize - 1;
  }

  int row_of(int query) const { return (query - task.query_begin) * task.group; }

  // Whether pages are multiplied as they lie in the pool, for so few rows.
  bool thin(int query_begin, int query_end) const {
    return Words::kWidens && (query_end - query_begin) * task.group <= Words::kThinRows;
  }

  const uint32_t* packed_k(int page) const {
    return reinterpret_cast<const uint32_t*>(k_page<Element>(task.kv, page, task.kv_head));
  }
  const uint32_t* packed_v(int page) const {
    return reinterpret_cast<const uint32_t*>(v_page<Element>(task.kv, page, task.kv_head));
  }

  // Operands of a page, made in `wide` unless they are the page itself.
  const uint32_t* k_words(int page, bool thin, uint32_t* wide) const {
    if (!Words::kWidens || thin) return packed_k(page);
    Words::widen(packed_k(page), head_dim / 2, kPageSize, wide);
    return wide;
  }
  const uint32_t* v_words(int page, bool thin, uint32_t* wide) const {
    if (!Words::kWidens || thin) return packed_v(page);
    Words::widen(packed_v(page), kPageSize / 2, head_dim, wide);
    return wide;
  }

  // Room for operands: of page j of a batch, or of one more page behind them, and behind all a row of words.
  uint32_t* wide_page(int j) const { return scratch.operands + j * Words::kWordsPerPage * head_dim; }
  uint32_t* spare_page() const { return wide_page(Words::kBatchPages); }
  uint32_t* spare_row() const { return wide_page(Words::kWidePages); }

  // Of int8 pages: the K scales of a query's tile, page by page as they lie in its rows of scores, then the V
  // scales.
  float* scales_of(int query) const { return scratch.scales + (query - task.query_begin) * 2 * kTilePages; }

  // Those of `count` pages for the queries of rows [row, row_end), from `page` of the rows on.
  void keep_scales(int row, int row_end, int page, const int32_t* pages, int count) const {
    for (int j = 0; j < count; ++j) {
      const float* of_page = page_scales(task.kv, pages[j], task.kv_head);
      for (int query = row / task.group; query < row_end / task.group; ++query) {
        float* scales = scales_of(task.query_begin + query) + (page + j) % kTilePages;
        scales[0] = of_page[0];
        scales[kTilePages] = of_page[1];
      }
    }
  }
};
