// Block tables as the planners take them, and the depth-first order that makes shared pages contiguous.
#pragma once

#include <cstdint>
#include <vector>

namespace tts {

struct BranchTables {
  const int32_t* block_tables;  // [num_branches, table_width], pages of each branch, or kHole; the rest is
                                // not read
  const int32_t* lengths;       // [num_branches] tokens of K and V, those of the queries included
  const int32_t* query_lens;    // [num_branches] the last so many tokens of the branch are queries; may be 0.
                                // Null: one each
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

inline constexpr int64_t kAnyPool = int64_t{1} << 31;  // of unknown size: every int32 is a page id

// One row a branch that has queries, in argument order; rows of q are branch-major. Throws ArgumentError,
// also for a hole in a page that holds a query, or the last token.
std::vector<BranchRow> checked_rows(const BranchTables& tables, int64_t num_pages_of_pool = kAnyPool);

// Sorts rows depth-first: a stable partition by the page in the first column where rows differ, then again
// within each part. Returns for each row how many leading pages it shares with the row before it (0 for the
// first). A hole is an entry like any other: behind one that only one of two rows has they share nothing.
std::vector<int32_t> sort_depth_first(std::vector<BranchRow>& rows);

// Columns up to the last page that a row shares with the row before it, which it agrees with in `shared`
// columns: holes in which both agree at last are no pages.
int32_t shared_pages(const BranchRow& row, int32_t shared);

}  // namespace tts
