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

// The rows of a run, row = query * group + head, and the tiles they are cut into: all of `height` rows, and
// the last of as few as hold the rest.
struct RunTiles {
  int64_t row_begin;
  int64_t row_end;
  int64_t tiles;
  int32_t height;
  int32_t last_height;
  double token_ns;      // of one token for a tile of `height`
  double all_token_ns;  // of one token for all tiles

  // fixed_height: of every tile; 0: the least that holds its rows.
  RunTiles(const WorkRun& run, int32_t fixed_height, const WorkShape& shape);
  int64_t rows() const { return row_end - row_begin; }
};

// Runs with their tiles. Splits of a run take a tile `split_ns` at most, as far as they are not too short.
struct WorkSchedule {
  std::vector<WorkRun> runs;
  std::vector<RunTiles> tiles;
  double split_ns = std::numeric_limits<double>::infinity();

  WorkSchedule(std::vector<WorkRun> runs, int32_t fixed_height, const WorkShape& shape);
  // Columns of each split of a run but for the last.
  int32_t split_columns(size_t run, int64_t page_size) const;
};

struct WorkEstimate {
  double ns = 0;       // of the attention and the merge on the whole device
  double tile_ns = 0;  // of the longest tile
  WorkCounts counts;   // at most
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
  std::vector<int32_t> query_shared;
  std::vector<int32_t> merge_begin;  // empty where nothing is merged
  std::vector<int32_t> merge_base;
  std::vector<int32_t> pages;
  int32_t partials = 0;
  std::vector<Tail> tails;  // of queries that have one to themselves, by query; else empty
  std::vector<int32_t> tail_items;

  WorkCounts counts() const;
};

WorkEstimate estimate(const WorkSchedule& schedule, const WorkShape& shape, int64_t page_size);

WorkList lay_out(const OrderedBranches& branches, const WorkSchedule& schedule, const WorkShape& shape,
                 int64_t page_size);

}  // namespace tts
