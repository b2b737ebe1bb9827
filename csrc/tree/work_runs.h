// Which pages are read together for which queries: the choice between reading shared pages once, at the price
// of partial results, and reading them again below a fork.
#pragma once

#include <cstdint>
#include <vector>

#include "tree/branch_order.h"
#include "tree/work_cost.h"

namespace tts {

// Branches in depth-first order.
struct OrderedBranches {
  std::vector<BranchRow> rows;
  std::vector<int32_t> shared;  // by row: leading pages shared with the row before
  std::vector<int32_t>
      query_begin;  // by row: depth-first number of its first query; last the number of queries

  explicit OrderedBranches(std::vector<BranchRow> branches);
  int32_t num_queries() const { return query_begin.back(); }
};

// Columns [column_begin, column_end) of the block tables, which hold the same pages for all queries
// [query_begin, query_end).
struct WorkRun {
  const int32_t* pages;  // a block table that has them
  int32_t column_begin;
  int32_t column_end;
  int32_t query_begin;
  int32_t query_end;
  bool whole_path;  // of each of its queries
  bool tail;        // the end of the path of one branch with one query, which no other query reads
  int32_t room;     // pages that a tail may grow by before it is planned anew
};

// That a plan has room for behind a tail, in tokens.
inline constexpr int64_t kTailTokens = 64;

// All of these list the runs of each query in the order of its path.

// Shared pages are read once where that pays by the cost model, else once for each branch of the fork; or
// once always, which takes the fewest entries in the lists of pages.
enum class Sharing { kWherePaying, kAlways };
std::vector<WorkRun> shared_runs(const OrderedBranches& branches, const WorkShape& shape, int64_t page_size,
                                 Sharing sharing);

// One run a branch, as plain paged decoding reads it.
std::vector<WorkRun> plain_runs(const OrderedBranches& branches, int64_t page_size);

// Chunks of kChunkTokens counted from the start of the path, each read for the branches that agree in all of
// it.
std::vector<WorkRun> chunk_runs(const OrderedBranches& branches, int64_t page_size);

inline constexpr int64_t kChunkTokens = 1024;

// The least tile height that holds `rows`, or the greatest there is.
int32_t tile_height(int64_t rows, int32_t max_height);

}  // namespace tts
