// Finds the pages that branches share, from their block tables alone, and plans one attention call so that
// each shared run of pages is read once for all queries below it.
#pragma once

#include <cstdint>
#include <vector>

#include "common/plan_records.h"
#include "tree/branch_order.h"

namespace tts {

// Queries are numbered depth-first, so the queries below any shared run of pages are contiguous. The segments
// covering a query at position p list pages 0 .. p / page_size of its branch once each, with kHole for
// evicted pages. They may also list later pages of the path that another query of the block sees, so kernels
// mask by position.
struct TreePlan {
  std::vector<int32_t> query_order;     // [T] depth-first number -> row of q
  std::vector<int32_t> query_position;  // [T] by depth-first number: position on the path
  std::vector<int32_t> pages;           // [N] physical pages of all segments
  std::vector<Segment> segments;        // block by block, each sorted by (tile, query_begin, first_page)
  std::vector<QueryBlock> blocks;       // cover [0, T) in order
  std::vector<PlannedBranch> branches;  // in depth-first order
  int32_t max_columns = 0;              // largest number of pages that a query sees
  // Pages in the tree. A shared page counts once, and again for branches with different holes before it.
  int64_t unique_pages = 0;
  int64_t logical_pages = 0;  // pages of all branches with queries, without sharing; holes do not count
};

struct PlanInput {
  BranchTables branches;
  int64_t query_block;  // maximum queries per block
};

// Throws ArgumentError. Rows of q are in argument order, branch-major.
TreePlan plan(const PlanInput& input);

}  // namespace tts
