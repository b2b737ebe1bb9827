// Decides which pages are read together for which queries. Reading shared pages once costs partial results;
// the alternative is to read them again below a fork.
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
      query_begin;  // by row: depth-first number of its first query; then the number of queries

  explicit OrderedBranches(std::vector<BranchRow> branches);
  int32_t num_queries() const { return query_begin.back(); }
};

// Columns [column_begin, column_end) of the block tables, with the same pages for all queries [query_begin,
// query_end).
struct WorkRun {
  const int32_t* pages;  // a block table with these pages
  int32_t column_begin;
  int32_t column_end;
  int32_t query_begin;
  int32_t query_end;
  bool whole_path;  // the run is the whole path of each of its queries
  bool tail;        // end of the path of a branch with one query; no other query reads it
  int32_t room;     // pages that a tail may grow by before replanning
};

// Tokens that a plan reserves room for after a tail.
inline constexpr int64_t kTailTokens = 64;

// All of these functions list the runs of each query in path order.

// kWherePaying: shared pages are read once where the cost model says that it pays, else once per branch of
// the fork. kAlways: they are always read once, which needs the fewest entries in the page lists.
enum class Sharing { kWherePaying, kAlways };
std::vector<WorkRun> shared_runs(const OrderedBranches& branches, const WorkShape& shape, int64_t page_size,
                                 Sharing sharing);

// One run per branch, as in plain paged decoding.
std::vector<WorkRun> plain_runs(const OrderedBranches& branches, int64_t page_size);

// Chunks of kChunkTokens, counted from the start of the path. Each is read once for all branches that agree
// in the whole chunk.
std::vector<WorkRun> chunk_runs(const OrderedBranches& branches, int64_t page_size);

inline constexpr int64_t kChunkTokens = 1024;

// The least tile height that holds `rows`, at most the greatest height.
int32_t tile_height(int64_t rows, int32_t max_height);

}  // namespace tts
