// From runs of pages to the tiles of a launch: splits of long runs, tiles of rows, and the lists for the
// merge.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "common/work_records.h"
#include "tree/work_runs.h"

namespace tts {

struct WorkCounts {
  int64_t items = 0;
  int64_t queries = 0;
  int64_t merges = 0;
  int64_t pages = 0;
  int64_t partials = 0;
};

// How a set of runs is cut. Tiles of `height`, or where that is 0 of the least that holds their rows; runs in
// splits that take a tile some `split_ns` at most.
struct WorkCut {
  int32_t height = 0;
  double split_ns = std::numeric_limits<double>::infinity();
};

struct WorkEstimate {
  double ns;          // of the attention and the merge on the whole device
  double tile_ns;     // of the longest tile
  WorkCounts counts;  // at most
};

// The plan of one call, in the parts of WorkLayout.
struct WorkList {
  // The end of a path that may grow: free entries of `pages`, and the items that read them.
  struct Tail {
    int32_t next_page;
    int32_t pages_end;
    int32_t item_begin;  // into tail_items
    int32_t item_end;
  };

  std::vector<WorkItem> items;
  std::vector<int32_t> query_order;
  std::vector<int32_t> query_position;
  std::vector<int32_t> merge_begin;  // empty where nothing is merged
  std::vector<int32_t> merge_base;
  std::vector<int32_t> pages;
  int32_t partials = 0;
  std::vector<Tail> tails;  // of queries that have one to themselves, by query; else empty
  std::vector<int32_t> tail_items;

  WorkCounts counts() const;
};

WorkEstimate estimate(const std::vector<WorkRun>& runs, const WorkCut& cut, const WorkShape& shape,
                      int64_t page_size);

WorkList lay_out(const OrderedBranches& branches, const std::vector<WorkRun>& runs, const WorkCut& cut,
                 const WorkShape& shape, int64_t page_size);

}  // namespace tts
