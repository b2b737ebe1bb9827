#include "tree/work_plan.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "common/error.h"

namespace tts {
namespace {

bool fits(const WorkCounts& counts, const WorkCapacity& capacity) {
  return counts.items <= capacity.items && counts.queries <= capacity.queries &&
         counts.merges <= capacity.merges && counts.pages <= capacity.pages &&
         counts.partials <= capacity.partials;
}

// Picks the schedule with the least estimated time among those that fit.
class Choice {
 public:
  Choice(const WorkShape& shape, int64_t page_size, const WorkCapacity& capacity)
      : shape_(shape), page_size_(page_size), capacity_(capacity) {}

  void consider(WorkSchedule schedule) { take(schedule, estimate(schedule, shape_, page_size_)); }

  // Tries the schedule unsplit, then with splits of half the longest tile's time, a quarter and so on.
  void consider_splits(WorkSchedule schedule) {
    WorkEstimate e = estimate(schedule, shape_, page_size_);
    take(schedule, e);
    const double start = e.tile_ns;
    for (double part = 2; start / part > WorkCost::kItem; part *= 2) {
      schedule.split_ns = start / part;
      e = estimate(schedule, shape_, page_size_);
      take(schedule, e);
    }
  }

  bool found() const { return best_.has_value(); }

  WorkList lay_out(const OrderedBranches& branches) const {
    if (!best_) refuse();
    return tts::lay_out(branches, *best_, shape_, page_size_);
  }

 private:
  void take(const WorkSchedule& schedule, const WorkEstimate& e) {
    if (!fits(e.counts, capacity_)) {
      if (!smallest_ || e.counts.pages + e.counts.partials < smallest_->pages + smallest_->partials) {
        smallest_ = e.counts;
      }
    } else if (!best_ || e.ns < ns_) {
      best_ = schedule;
      ns_ = e.ns;
    }
  }

  [[noreturn]] void refuse() const {
    const auto each = [](const auto& c) {
      return concat(c.items, " items, ", c.queries, " queries, ", c.merges, " merges, ", c.pages, " pages, ",
                    c.partials, " partials");
    };
    throw CapacityError(concat("capacity: got room for ", each(capacity_), ", but these branches need ",
                               each(*smallest_), "; plan with a larger capacity (and capture graphs anew)"));
  }

  const WorkShape& shape_;
  int64_t page_size_;
  WorkCapacity capacity_;
  std::optional<WorkSchedule> best_;
  double ns_ = 0;
  std::optional<WorkCounts> smallest_;
};

template <class T>
void put(int32_t* buffer, int64_t offset, const std::vector<T>& part) {
  if (!part.empty()) std::memcpy(buffer + offset, part.data(), part.size() * sizeof(T));
}

}  // namespace

WorkPlanner::WorkPlanner(const WorkShape& shape, int64_t page_size, int64_t num_pages, bool branch_invariant)
    : shape_(shape), page_size_(page_size), num_pages_(num_pages), branch_invariant_(branch_invariant) {}

bool WorkPlanner::update(const BranchTables& tables, const std::optional<WorkCapacity>& capacity) {
  const bool room = !capacity || fits(list_.counts(), *capacity);
  if (room && advance(tables)) return true;
  list_ = make(tables, capacity);
  ++plans_;
  changes_.clear();
  remember(tables);
  return false;
}

WorkList WorkPlanner::make(const BranchTables& tables, const std::optional<WorkCapacity>& capacity) const {
  const OrderedBranches branches(checked_rows(tables, num_pages_));
  const int64_t most = std::numeric_limits<int32_t>::max();
  Choice choice(shape_, page_size_, capacity.value_or(WorkCapacity{most, most, most, most, most}));
  if (branch_invariant_) {
    choice.consider({chunk_runs(branches, page_size_), std::min(64, shape_.max_height), shape_});
  } else {
    choice.consider_splits({shared_runs(branches, shape_, page_size_, Sharing::kWherePaying), 0, shape_});
    choice.consider_splits({plain_runs(branches, page_size_), 0, shape_});
    if (!choice.found())
      choice.consider({shared_runs(branches, shape_, page_size_, Sharing::kAlways), 0, shape_});
  }
  return choice.lay_out(branches);
}

// If `tables` are the plan's with longer tails that fit the reserved room, advances the plan to them and
// returns true.
bool WorkPlanner::advance(const BranchTables& tables) {
  const auto num_branches = static_cast<int64_t>(known_.size());
  if (list_.tails.empty() || tables.num_branches != num_branches) return false;
  const auto page_size = static_cast<uint32_t>(page_size_);
  std::vector<int32_t> new_pages(num_branches);  // total per branch
  for (int64_t i = 0; i < num_branches; ++i) {
    const int64_t b = list_.query_order[i];  // one query per branch, or there are no tails
    const Known& known = known_[b];
    const WorkList::Tail& tail = list_.tails[i];
    const int32_t* pages = tables.block_tables + b * tables.table_width;
    const int32_t length = tables.lengths[b];
    if ((tables.query_lens && tables.query_lens[b] != 1) || length < known.length) return false;
    new_pages[b] = static_cast<int32_t>((static_cast<uint32_t>(length) + page_size - 1) / page_size);
    if (new_pages[b] > tables.table_width || new_pages[b] - known.pages > tail.pages_end - tail.next_page ||
        std::memcmp(pages, &known_tables_[b * known_width_], known.pages * sizeof(int32_t)) != 0) {
      return false;
    }
    for (int32_t column = known.pages; column < new_pages[b]; ++column) {
      if (pages[column] < 0 || pages[column] >= num_pages_) return false;
    }
  }
  for (int64_t i = 0; i < num_branches; ++i) {
    const int64_t b = list_.query_order[i];
    Known& known = known_[b];
    const int32_t* pages = tables.block_tables + b * tables.table_width;
    WorkList::Tail& tail = list_.tails[i];
    for (; known.pages < new_pages[b]; ++known.pages) {
      changes_.push_back(tail.next_page);
      list_.pages[tail.next_page++] = pages[known.pages];
      known_tables_[b * known_width_ + known.pages] = pages[known.pages];
    }
    known.length = tables.lengths[b];
    list_.query_position[i] = known.length - 1;
    for (int32_t t = tail.item_begin; t < tail.item_end; ++t) {
      WorkItem& item = list_.items[list_.tail_items[t]];
      // One query sees the whole item, so only a hole ends its unmasked tokens, and that hole does not move.
      const bool has_hole = item.num_unmasked < item.num_tokens;
      item.num_tokens = known.length - item.first_position;
      if (!has_hole) item.num_unmasked = item.num_tokens;
    }
  }
  return true;
}

void WorkPlanner::remember(const BranchTables& tables) {
  // If a branch has no query, rows of q are not branches, and no tails are kept.
  if (static_cast<int64_t>(list_.query_order.size()) != tables.num_branches) list_.tails.clear();
  if (list_.tails.empty()) return;
  int32_t room = 0;  // pages after the tails
  for (const WorkList::Tail& tail : list_.tails) room = std::max(room, tail.pages_end - tail.next_page);
  known_width_ = tables.table_width + room;
  known_.resize(tables.num_branches);
  known_tables_.assign(tables.num_branches * known_width_, -1);
  for (int64_t b = 0; b < tables.num_branches; ++b) {
    const int32_t length = tables.lengths[b];
    const auto num_pages = static_cast<int32_t>((length + page_size_ - 1) / page_size_);
    known_[b] = {length, num_pages};
    const int32_t* pages = tables.block_tables + b * tables.table_width;
    std::copy(pages, pages + tables.table_width, &known_tables_[b * known_width_]);
  }
}

int64_t WorkPlanner::max_columns() const {
  const auto& position = list_.query_position;
  return position.empty() ? 0 : *std::max_element(position.begin(), position.end()) / page_size_ + 1;
}

int64_t WorkPlanner::write(int32_t* buffer, const WorkCapacity& capacity, int64_t stamp) const {
  const WorkLayout at(capacity);
  const WorkCounts n = counts();
  std::fill(buffer, buffer + at.items, 0);
  int32_t* header = buffer;
  for (const int64_t count : {n.items, n.queries, n.merges, n.pages, n.partials}) {
    *header++ = static_cast<int32_t>(count);
  }
  put(buffer, at.items, list_.items);
  put(buffer, at.query_position, list_.query_position);
  if (stamp >> 32 == plans_) {
    for (size_t i = stamp & 0xffffffff; i < changes_.size(); ++i) {
      buffer[at.pages + changes_[i]] = list_.pages[changes_[i]];
    }
    return at.pages + n.pages;
  }
  put(buffer, at.query_order, list_.query_order);
  put(buffer, at.query_shared, list_.query_shared);
  if (list_.merge_begin.empty()) {
    std::fill_n(buffer + at.merge_begin, n.queries + 1, 0);
  } else {
    put(buffer, at.merge_begin, list_.merge_begin);
  }
  put(buffer, at.merge_base, list_.merge_base);
  put(buffer, at.pages, list_.pages);
  return at.pages + n.pages;
}

}  // namespace tts
