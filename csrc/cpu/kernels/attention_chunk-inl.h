// The inputs of attention over a chunk of the path: rows, the tokens they see, and pages as operands.
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

  // A query sees positions [first_visible, position].
  int first_visible(int query) const {
    const int position = task.position[query];
    const int first = task.window > 0 ? max_of(position - task.window + 1, 0) : 0;
    return task.attention_chunk > 0 ? max_of(first, position - position % task.attention_chunk) : first;
  }

  // Whether the query sees every token in pages [page, page_end) of its path.
  bool sees_all(int query, int page, int page_end) const {
    return first_visible(query) <= page * kPageSize && task.position[query] >= page_end * kPageSize - 1;
  }

  int row_of(int query) const { return (query - task.query_begin) * task.group; }

  // Whether the rows are so few that pages are multiplied in place, in the pool.
  bool thin(int query_begin, int query_end) const {
    return Words::kWidens && (query_end - query_begin) * task.group <= Words::kThinRows;
  }

  const uint32_t* packed_k(int page) const {
    return reinterpret_cast<const uint32_t*>(k_page<Element>(task.kv, page, task.kv_head));
  }
  const uint32_t* packed_v(int page) const {
    return reinterpret_cast<const uint32_t*>(v_page<Element>(task.kv, page, task.kv_head));
  }

  // Operands of a page, converted into `wide` unless the page itself serves.
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

  // Memory for the operands of page j of a batch; one more page follows the batch, then a row of words.
  uint32_t* wide_page(int j) const { return scratch.operands + j * Words::kWordsPerPage * head_dim; }
  uint32_t* spare_page() const { return wide_page(Words::kBatchPages); }
  uint32_t* spare_row() const { return wide_page(Words::kWidePages); }

  // For int8 pages: K scales of a query's tile, in the page order of its rows of scores, then V scales.
  float* scales_of(int query) const { return scratch.scales + (query - task.query_begin) * 2 * kTilePages; }

  // Stores the scales of `count` pages for the queries of rows [row, row_end), from page index `page` on.
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
