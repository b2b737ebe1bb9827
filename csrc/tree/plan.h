// Finds what branches share from their block tables alone, and lays the work of one attention call out so
// that each shared run of pages is read once for all the queries below it.
#pragma once

#include <cstdint>
#include <vector>

#include "common/plan_records.h"
#include "tree/branch_order.h"

namespace tts {

// Queries are numbered depth-first: those below any shared run of pages are contiguous. For each query at
// position p, the segments covering it list the pages 0 .. p / page_size of its branch once each, with kHole
// in place of evicted ones. They may list later pages of the same path too, where another query of the block
// sees them: a kernel masks by position.
struct TreePlan {
  std::vector<int32_t> query_order;     // [T] depth-first number -> row of q
  std::vector<int32_t> query_position;  // [T] by depth-first number: position on the path
  std::vector<int32_t> pages;           // [N] physical pages of all segments
  std::vector<Segment> segments;        // of each block in turn, sorted by (tile, query_begin, first_page)
  std::vector<QueryBlock> blocks;       // cover [0, T) in order
  std::vector<PlannedBranch> branches;  // in depth-first order
  int32_t max_columns = 0;              // most pages that a query sees
  // Pages on the tree: a shared page counts once, but again for branches that have other holes before it.
  int64_t unique_pages = 0;
  int64_t logical_pages = 0;  // pages of all branches with queries, without sharing; holes are none
};

struct PlanInput {
  BranchTables branches;
  int64_t query_block;  // most queries of a block
};

// Throws ArgumentError. Rows of q are in argument order, branch-major.
TreePlan plan(const PlanInput& input);

}  // namespace tts
