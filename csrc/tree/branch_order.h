// Block tables, the planners' input, and the depth-first order that makes shared pages contiguous.
#pragma once

#include <cstdint>
#include <vector>

namespace tts {

struct BranchTables {
  const int32_t* block_tables;  // [num_branches, table_width], pages of each branch, or kHole; entries after
                                // the last page are not read
  const int32_t* lengths;       // [num_branches] tokens of K and V, including the queries' own
  const int32_t* query_lens;    // [num_branches] how many last tokens are queries; may be 0. Null: one each
  int64_t num_branches;
  int64_t table_width;
  int64_t page_size;
};

// A branch that has queries.
struct BranchRow {
  const int32_t* pages;
  int32_t num_pages;  // holes included
  int32_t num_holes;
  int32_t length;
  int32_t num_queries;
  int32_t first_query;  // row of q
};

inline constexpr int64_t kAnyPool = int64_t{1} << 31;  // unknown size: every int32 is a page id

// One row per branch that has queries, in argument order; rows of q are branch-major. Throws ArgumentError
// for bad tables, including a hole in place of a page that holds a query or the last token.
std::vector<BranchRow> checked_rows(const BranchTables& tables, int64_t num_pages_of_pool = kAnyPool);

// Sorts rows depth-first: a stable partition by the page in the first column where rows differ, then again
// within each part. Returns the number of leading pages that each row shares with the row before it (0 for
// the first). A hole compares like any other entry: rows share nothing after a hole that only one of them
// has.
std::vector<int32_t> sort_depth_first(std::vector<BranchRow>& rows);

// Columns up to the last page among a row's first `shared` columns, which agree with the row before it:
// trailing holes are not pages.
int32_t shared_pages(const BranchRow& row, int32_t shared);

}  // namespace tts
