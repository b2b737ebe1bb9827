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

  // Returns whether the plan was only advanced: then its counts are what they were. Throws ArgumentError for
  // bad tables, CapacityError if no schedule fits; the plan stays as it was.
  bool update(const BranchTables& tables, const std::optional<WorkCapacity>& capacity);

  WorkCounts counts() const { return list_.counts(); }
  int64_t max_columns() const;  // most pages that a query sees
  // What a buffer holds that is written now. 0 is no plan.
  int64_t stamp() const { return (plans_ << 32) + static_cast<int64_t>(changes_.size()); }
  // Fills a buffer of WorkLayout(capacity), which must hold counts() and was last written at `stamp`; returns
  // how many ints of it, from its start, hold the plan.
  int64_t write(int32_t* buffer, const WorkCapacity& capacity, int64_t stamp) const;

 private:
  bool advance(const BranchTables& tables);
  WorkList make(const BranchTables& tables, const std::optional<WorkCapacity>& capacity) const;
  void remember(const BranchTables& tables);

  WorkShape shape_;
  int64_t page_size_;
  int64_t num_pages_;
  bool branch_invariant_;
  WorkList list_;
  int64_t plans_ = 0;             // made so far
  std::vector<int32_t> changes_;  // entries of list_.pages that were added to this one
  // The tables that the plan is of, for advance(): [branches] and [branches, known_width_].
  struct Known {
    int32_t length;
    int32_t pages;
  };
  std::vector<Known> known_;
  std::vector<int32_t> known_tables_;
  int64_t known_width_ = 0;
};

}  // namespace tts
