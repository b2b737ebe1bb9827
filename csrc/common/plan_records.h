// Records of a TreePlan (tree/plan.h), written by the planner and read by kernels. Plain data only.
#pragma once

#include <cstdint>

namespace tts {

// Stands for an evicted page in block tables and in a plan's page lists. Positions keep their meaning; no
// query attends to the positions of a hole.
inline constexpr int32_t kHole = -1;

// Softmax tiles start at fixed positions of the path, so that a branch's result does not depend on its
// siblings.
inline constexpr int32_t kTilePages = 16;

// Pages [first_page, first_page + num_pages) of the path, which are the same physical pages for all queries
// [query_begin, query_end). A segment lies within one tile, first_page / kTilePages.
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

// A branch with queries [query_begin, query_end). It shares its first `shared` pages with the previous branch
// (0 for the first branch).
struct PlannedBranch {
  int32_t query_begin;
  int32_t query_end;
  int32_t shared;
};

}  // namespace tts
