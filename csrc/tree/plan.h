// Finds what branches share from their block tables alone, and lays the work of one attention call out so
// that each shared run of pages is read once for all the queries below it.
#pragma once

#include <cstdint>
#include <vector>

namespace tts {

// Softmax tiles fall at fixed positions of the path, so that a branch's result does not depend on its
// siblings.
inline constexpr int32_t kTilePages = 16;

// Pages [first_page, first_page + num_pages) of the path are the same physical pages for all queries
// [query_begin, query_end). Lies within one tile: first_page / kTilePages.
struct Segment {
  int32_t page_offset;  // into TreePlan::pages
  int32_t first_page;
  int32_t num_pages;
  int32_t query_begin;
  int32_t query_end;
};

// Queries [query_begin, query_end) with segments [segment_begin, segment_end).
struct QueryBlock {
  int32_t query_begin;
  int32_t query_end;
  int32_t segment_begin;
  int32_t segment_end;
};

// Queries are numbered depth-first: those below any shared run of pages are contiguous. For each query at
// position p, the segments covering it list the pages 0 .. p / page_size of its branch once each. They may
// list later pages of the same path too, where a later query of the block sees them: a kernel masks by
// position.
struct TreePlan {
  std::vector<int32_t> query_order;     // [T] depth-first number -> row of q
  std::vector<int32_t> query_position;  // [T] by depth-first number: position on the path
  std::vector<int32_t> pages;           // [N] physical pages of all segments
  std::vector<Segment> segments;        // of each block in turn, sorted by (tile, query_begin, first_page)
  std::vector<QueryBlock> blocks;       // cover [0, T) in order
  int64_t unique_pages = 0;             // pages on the tree: a shared page counts once
  int64_t logical_pages = 0;            // pages of all branches with queries, without sharing
};

struct PlanInput {
  const int32_t*
      block_tables;  // [num_branches, table_width]; only the first ceil(length / page_size) entries count
  const int32_t* lengths;     // [num_branches] tokens of K and V, those of the queries included
  const int32_t* query_lens;  // [num_branches] the last so many tokens of the branch are queries; may be 0
  int64_t num_branches;
  int64_t table_width;
  int64_t page_size;
  int64_t query_block;  // most queries of a block
};

// Throws ArgumentError. Rows of q are in argument order, branch-major.
TreePlan plan(const PlanInput& input);

}  // namespace tts
