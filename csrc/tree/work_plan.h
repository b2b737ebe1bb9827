// Plans one attention call for a GPU: which tiles of rows read which run of pages, and where partial results
// are merged (common/work_records.h).
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "common/work_records.h"
#include "tree/branch_order.h"
#include "tree/work_list.h"

namespace tts {

// Plans successive calls. If only tails grew since the last call and the room after them suffices, the plan
// is advanced in place; otherwise it is rebuilt.
class WorkPlanner {
 public:
  // num_pages: pages in the pool; page ids are below it. branch_invariant: uses tiles of one height over
  // fixed chunks of the path, so that a row's bits do not depend on other branches.
  WorkPlanner(const WorkShape& shape, int64_t page_size, int64_t num_pages, bool branch_invariant);

  // Returns whether the plan was only advanced, which leaves its counts unchanged. Throws ArgumentError for
  // bad tables and CapacityError if no schedule fits; both leave the plan unchanged.
  bool update(const BranchTables& tables, const std::optional<WorkCapacity>& capacity);

  WorkCounts counts() const { return list_.counts(); }
  int64_t max_columns() const;  // largest number of pages that a query sees
  // Version of the current plan, which a buffer written now holds. 0 is no plan.
  int64_t stamp() const { return (plans_ << 32) + static_cast<int64_t>(changes_.size()); }
  // Fills a buffer laid out as WorkLayout(capacity), last written at `stamp`; the capacity must hold
  // counts(). Returns the number of leading ints that hold the plan.
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
  int64_t plans_ = 0;             // plans made so far
  std::vector<int32_t> changes_;  // entries of list_.pages added to the current plan
  // The tables of the current plan, for advance(): [branches] and [branches, known_width_].
  struct Known {
    int32_t length;
    int32_t pages;
  };
  std::vector<Known> known_;
  std::vector<int32_t> known_tables_;
  int64_t known_width_ = 0;
};

}  // namespace tts
