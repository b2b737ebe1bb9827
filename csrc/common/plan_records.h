// Rows of a TreePlan (tree/plan.h), as the planner writes them and kernels read them. Plain data only.
#pragma once

#include <cstdint>

namespace tts {

// In place of a page, in block tables and in the lists of pages of a plan: an evicted page. Positions keep
// their meaning; nobody attends to those of a hole.
inline constexpr int32_t kHole = -1;

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

// A branch with queries [query_begin, query_end), which shares its first `shared` pages with the branch
// before (0 for the first).
struct PlannedBranch {
  int32_t query_begin;
  int32_t query_end;
  int32_t shared;
};

}  // namespace tts
