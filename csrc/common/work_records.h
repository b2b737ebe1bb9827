// The work list of one attention call on a GPU, as the planner writes it and kernels read it. Plain data
// only.
//
// Rows are pairs of a query and a head of its GQA group: row = query * group + head, queries depth-first. All
// of it holds for each KV head alike.
#pragma once

#include <cstdint>

namespace tts {

// `partial_base` of an item that covers the whole path of its rows: it writes out and lse itself.
inline constexpr int32_t kDirect = INT32_MIN;

// One tile: up to `height` rows over consecutive pages of the path that they share.
struct WorkItem {
  int32_t page_offset;     // of the first page, into the list of pages
  int32_t first_position;  // position on the path of that page's first token; a multiple of page_size
  int32_t num_tokens;      // read from there on; the slots behind are not touched
  int32_t num_unmasked;    // leading tokens that no row's own position hides (a window may), none of a hole
  int32_t row_begin;
  int32_t row_end;
  int32_t partial_base;  // row r writes the partial partial_base + r (see WorkLayout), or kDirect
  int32_t height;        // 16, 64 or 128: what the tile is computed as
};

// How much a work list holds at most; each a multiple of 16.
struct WorkCapacity {
  int64_t items;
  int64_t queries;
  int64_t merges;  // (query, partial) pairs
  int64_t pages;
  int64_t partials;  // rows of partial results, for each KV head
};

// Where the parts of a work list lie in one int32 buffer, so that one copy brings it to the device.
//
//   header          [16]          number of items, queries, merges, pages, partials; the rest is 0
//   items           [items, 8]    WorkItem, the most expensive first
//   query_order     [queries]     depth-first number -> row of q, out and lse
//   query_position  [queries]     by depth-first number: the query sees the tokens 0 .. position
//   query_shared    [queries]     by depth-first number: leading columns (pages on the path) that the query
//                                 before has too; INT32_MAX where it is of the same branch
//   merge_begin     [queries+16]  partials of query i: merge_base[merge_begin[i] .. merge_begin[i + 1]), in
//                                 path order; none where an item writes the result itself
//   merge_base      [merges]      row r of the query has its partial at merge_base + r
//   pages           [pages]       physical pages of all items; kHole where one was evicted
//
// Partials are float32: first their normalised outputs [num_kv_heads, partials, head_dim], then their
// natural-log lse [num_kv_heads, partials]. A partial whose rows saw nothing is (0, -inf).
struct WorkLayout {
  int64_t items, query_order, query_position, query_shared, merge_begin, merge_base, pages, end;

  explicit constexpr WorkLayout(const WorkCapacity& capacity)
      : items(16),
        query_order(items + 8 * capacity.items),
        query_position(query_order + capacity.queries),
        query_shared(query_position + capacity.queries),
        merge_begin(query_shared + capacity.queries),
        merge_base(merge_begin + capacity.queries + 16),
        pages(merge_base + capacity.merges),
        end(pages + capacity.pages) {}
};

}  // namespace tts
