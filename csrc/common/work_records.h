// The work list of one attention call on a GPU, written by the planner and read by kernels. Plain data only.
//
// A row is a query and a head of its GQA group: row = query * group + head, with queries depth-first. The
// list applies to every KV head.
#pragma once

#include <cstdint>

namespace tts {

// `partial_base` of an item that covers the whole path of its rows and writes out and lse directly.
inline constexpr int32_t kDirect = INT32_MIN;

// One tile: up to `height` rows over consecutive pages of their shared path.
struct WorkItem {
  int32_t page_offset;     // of the first page, into the list of pages
  int32_t first_position;  // path position of that page's first token; a multiple of page_size
  int32_t num_tokens;      // tokens read from first_position; later slots are not touched
  int32_t num_unmasked;    // leading tokens, before any hole, that no row's position hides; a window may
  int32_t row_begin;
  int32_t row_end;
  int32_t partial_base;  // row r writes the partial partial_base + r (see WorkLayout), or kDirect
  int32_t height;        // rows the tile is computed with: 16, 64 or 128
};

// Capacity of a work list; each number is a multiple of 16.
struct WorkCapacity {
  int64_t items;
  int64_t queries;
  int64_t merges;  // (query, partial) pairs
  int64_t pages;
  int64_t partials;  // rows of partial results per KV head
};

// Offsets of a work list's parts in one int32 buffer, so that one copy moves it to the device.
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
// natural-log lse [num_kv_heads, partials]. A partial that saw no token is (0, -inf).
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
