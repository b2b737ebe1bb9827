// Turns runs of pages into the tiles of a launch: splits long runs, cuts rows into tiles, and lists the
// merges.
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

// The rows of a run, row = query * group + head, and their tiles: each has `height` rows, except the last,
// which has the least height that holds the rest.
struct RunTiles {
  int64_t row_begin;
  int64_t row_end;
  int64_t tiles;
  int32_t height;
  int32_t last_height;
  double token_ns;      // one token, for a tile of `height`
  double all_token_ns;  // one token, for all tiles

  // fixed_height: height of every tile; 0: the least height that holds its rows.
  RunTiles(const WorkRun& run, int32_t fixed_height, const WorkShape& shape);
  int64_t rows() const { return row_end - row_begin; }
};

// Runs with their tiles. A split of a run takes a tile at most `split_ns`, unless it would be too short.
struct WorkSchedule {
  std::vector<WorkRun> runs;
  std::vector<RunTiles> tiles;
  double split_ns = std::numeric_limits<double>::infinity();

  WorkSchedule(std::vector<WorkRun> runs, int32_t fixed_height, const WorkShape& shape);
  // Columns of each split of a run except the last.
  int32_t split_columns(size_t run, int64_t page_size) const;
};

struct WorkEstimate {
  double ns = 0;       // attention and merge on the whole device
  double tile_ns = 0;  // longest tile
  WorkCounts counts;   // upper bounds
};

// The plan of one call, split into the parts of WorkLayout.
struct WorkList {
  // The end of a path that may grow: its free entries in `pages`, and the items that read them.
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
  std::vector<int32_t> merge_begin;  // empty if nothing is merged
  std::vector<int32_t> merge_base;
  std::vector<int32_t> pages;
  int32_t partials = 0;
  std::vector<Tail> tails;  // by query, where each query has a tail of its own; else empty
  std::vector<int32_t> tail_items;

  WorkCounts counts() const;
};

WorkEstimate estimate(const WorkSchedule& schedule, const WorkShape& shape, int64_t page_size);

WorkList lay_out(const OrderedBranches& branches, const WorkSchedule& schedule, const WorkShape& shape,
                 int64_t page_size);

}  // namespace tts
