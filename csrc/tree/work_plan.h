// Lays one attention call out for a GPU: which tiles of rows read which run of pages, and where partial
// results are merged (common/work_records.h).
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "common/work_records.h"
#include "tree/branch_order.h"
#include "tree/work_list.h"

namespace tts {

// Plans one call after another. When all that happened since the last call is that tails grew, the plan is
// advanced in place, as often as the room behind the tails allows; otherwise it is made anew.
class WorkPlanner {
 public:
  // num_pages: of the pool; page ids are below. branch_invariant: tiles of one height over fixed chunks of
  // the path, so that the bits of a row do not depend on other branches.
  WorkPlanner(const WorkShape& shape, int64_t page_size, int64_t num_pages, bool branch_invariant);

  // Throws ArgumentError for bad tables, CapacityExceeded if no schedule fits; the plan stays as it was.
  void update(const BranchTables& tables, const std::optional<WorkCapacity>& capacity);

  WorkCounts counts() const { return list_.counts(); }
  bool advanced() const { return advanced_; }  // by the last update, not made anew
  // Fills a buffer of WorkLayout(capacity), which must hold counts(); returns how many ints of it, from its
  // start, hold the plan.
  int64_t write(int32_t* buffer, const WorkCapacity& capacity) const;

 private:
  bool advance(const BranchTables& tables);
  WorkList make(const BranchTables& tables, const std::optional<WorkCapacity>& capacity) const;
  void remember(const BranchTables& tables);

  WorkShape shape_;
  int64_t page_size_;
  int64_t num_pages_;
  bool branch_invariant_;
  bool advanced_ = false;
  WorkList list_;
  // The tables that the plan is of, for advance(): [branches] and [branches, known_width_].
  std::vector<int32_t> known_lengths_;
  std::vector<int32_t> known_tables_;
  int64_t known_width_ = 0;
};

}  // namespace tts
