#include "tree/work_list.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

#include "common/plan_records.h"

namespace tts {
namespace {

// Shorter splits cost more in partial results than they gain in load balance.
constexpr int64_t kLeastSplitTokens = 64;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

class Builder {
 public:
  Builder(const OrderedBranches& branches, const WorkShape& shape, int64_t page_size)
      : shape_(shape), page_size_(page_size) {
    for (size_t r = 0; r < branches.rows.size(); ++r) {
      const BranchRow& row = branches.rows[r];
      for (int32_t q = 0; q < row.num_queries; ++q) {
        list_.query_order.push_back(row.first_query + q);
        list_.query_position.push_back(row.length - row.num_queries + q);
        list_.query_shared.push_back(q > 0 ? std::numeric_limits<int32_t>::max()
                                           : shared_pages(row, branches.shared[r]));
      }
    }
    tails_.resize(branches.num_queries(), {-1, -1, 0, 0});
  }

  void add(const WorkRun& run, const RunTiles& tiles, int32_t split_columns) {
    const auto page_offset = static_cast<int32_t>(list_.pages.size());
    list_.pages.insert(list_.pages.end(), run.pages + run.column_begin, run.pages + run.column_end);
    list_.pages.resize(list_.pages.size() + run.room, 0);
    const auto first_item = static_cast<int32_t>(list_.items.size());
    int32_t last_split_item = first_item;
    for (int32_t column = run.column_begin; column < run.column_end; column += split_columns) {
      last_split_item = static_cast<int32_t>(list_.items.size());
      int32_t base = kDirect;
      if (!run.whole_path || run.column_begin + split_columns < run.column_end) {
        base = static_cast<int32_t>(list_.partials - tiles.row_begin);
        list_.partials += static_cast<int32_t>(tiles.rows());
      }
      const int32_t stop = std::min(column + split_columns, run.column_end);
      add_tiles(tiles, page_offset + column - run.column_begin, column, stop, base);
      if (base != kDirect) add_merges(run, column, base);
    }
    if (run.tail) {
      const auto begin = static_cast<int32_t>(list_.tail_items.size());
      for (auto i = last_split_item; i < static_cast<int32_t>(list_.items.size()); ++i) {
        list_.tail_items.push_back(i);
      }
      tails_[run.query_begin] = {page_offset + run.column_end - run.column_begin,
                                 static_cast<int32_t>(list_.pages.size()), begin,
                                 static_cast<int32_t>(list_.tail_items.size())};
    }
  }

  WorkList finish() {
    sort_items();
    sort_merges();
    const bool all =
        std::all_of(tails_.begin(), tails_.end(), [](const auto& t) { return t.next_page >= 0; });
    if (all) list_.tails = std::move(tails_);
    return std::move(list_);
  }

 private:
  void add_tiles(const RunTiles& tiles, int32_t page_offset, int32_t column, int32_t stop, int32_t base) {
    const int64_t first_position = column * page_size_;
    const int64_t limit = (stop - column) * page_size_;
    const auto pages = list_.pages.begin() + page_offset;
    const int64_t held = (std::find(pages, pages + (stop - column), kHole) - pages) * page_size_;
    for (int64_t row = tiles.row_begin; row < tiles.row_end; row += tiles.height) {
      const int64_t row_end = std::min(row + tiles.height, tiles.row_end);
      const auto [least, most] =
          std::minmax_element(list_.query_position.begin() + row / shape_.group,
                              list_.query_position.begin() + ceil_div(row_end, shape_.group));
      const int64_t tokens = std::min(limit, *most + 1 - first_position);
      if (tokens <= 0) continue;  // all rows end earlier
      const int64_t unmasked = std::clamp<int64_t>(*least + 1 - first_position, 0, std::min(tokens, held));
      list_.items.push_back({page_offset, static_cast<int32_t>(first_position), static_cast<int32_t>(tokens),
                             static_cast<int32_t>(unmasked), static_cast<int32_t>(row),
                             static_cast<int32_t>(row_end), base,
                             row_end < tiles.row_end ? tiles.height : tiles.last_height});
    }
  }

  void add_merges(const WorkRun& run, int32_t column, int32_t base) {
    for (int32_t query = run.query_begin; query < run.query_end; ++query) {
      if (list_.query_position[query] >= column * page_size_) merges_.emplace_back(query, base);
    }
  }

  // Sorts the most expensive items first, so that the device does not wait for a long item that starts late.
  void sort_items() {
    const WorkCost cost(shape_);
    std::vector<std::pair<double, int32_t>> keys;  // (- ns, item)
    keys.reserve(list_.items.size());
    for (const WorkItem& item : list_.items) {
      keys.emplace_back(-item.num_tokens * cost.token(item.height), static_cast<int32_t>(keys.size()));
    }
    std::sort(keys.begin(), keys.end());
    std::vector<WorkItem> sorted;
    sorted.reserve(keys.size());
    std::vector<int32_t> place(keys.size());
    for (const auto& [ns, item] : keys) {
      place[item] = static_cast<int32_t>(sorted.size());
      sorted.push_back(list_.items[item]);
    }
    list_.items = std::move(sorted);
    for (int32_t& item : list_.tail_items) item = place[item];
  }

  // Counting sort by query; each query's merges stay in path order.
  void sort_merges() {
    if (merges_.empty()) return;
    std::vector<int32_t>& begin = list_.merge_begin;
    begin.assign(list_.query_order.size() + 1, 0);
    for (const auto& [query, base] : merges_) ++begin[query + 1];
    std::partial_sum(begin.begin(), begin.end(), begin.begin());
    std::vector<int32_t> next(begin.begin(), begin.end() - 1);
    list_.merge_base.resize(merges_.size());
    for (const auto& [query, base] : merges_) list_.merge_base[next[query]++] = base;
  }

  WorkShape shape_;
  int64_t page_size_;
  WorkList list_;
  std::vector<WorkList::Tail> tails_;
  std::vector<std::pair<int32_t, int32_t>> merges_;  // (query, base)
};

}  // namespace

WorkCounts WorkList::counts() const {
  return {static_cast<int64_t>(items.size()), static_cast<int64_t>(query_order.size()),
          static_cast<int64_t>(merge_base.size()), static_cast<int64_t>(pages.size()), partials};
}

RunTiles::RunTiles(const WorkRun& run, int32_t fixed_height, const WorkShape& shape)
    : row_begin(int64_t{run.query_begin} * shape.group), row_end(int64_t{run.query_end} * shape.group) {
  height = fixed_height ? fixed_height : tile_height(rows(), shape.max_height);
  tiles = ceil_div(rows(), height);
  last_height = fixed_height ? height : tile_height(rows() - (tiles - 1) * height, shape.max_height);
  const WorkCost cost(shape);
  token_ns = cost.token(height);
  all_token_ns = static_cast<double>(tiles - 1) * token_ns + cost.token(last_height);
}

WorkSchedule::WorkSchedule(std::vector<WorkRun> all, int32_t fixed_height, const WorkShape& shape)
    : runs(std::move(all)) {
  tiles.reserve(runs.size());
  for (const WorkRun& run : runs) tiles.emplace_back(run, fixed_height, shape);
}

int32_t WorkSchedule::split_columns(size_t run, int64_t page_size) const {
  const int32_t columns = runs[run].column_end - runs[run].column_begin;
  const double tokens = std::max<double>(kLeastSplitTokens, split_ns / tiles[run].token_ns);
  if (tokens >= static_cast<double>(columns * page_size)) return columns;
  const auto most = static_cast<int32_t>(std::max<int64_t>(1, static_cast<int64_t>(tokens) / page_size));
  const int32_t splits = (columns + most - 1) / most;
  return (columns + splits - 1) / splits;
}

WorkEstimate estimate(const WorkSchedule& schedule, const WorkShape& shape, int64_t page_size) {
  WorkEstimate result;
  WorkCounts& counts = result.counts;
  double work = 0;  // ns of one multiprocessor for one KV head
  for (size_t r = 0; r < schedule.runs.size(); ++r) {
    const WorkRun& run = schedule.runs[r];
    const RunTiles& tiles = schedule.tiles[r];
    const int32_t split_columns = schedule.split_columns(r, page_size);
    const int32_t columns = run.column_end - run.column_begin;
    const int64_t splits = split_columns == columns ? 1 : (columns + split_columns - 1) / split_columns;
    const double longest = static_cast<double>(split_columns * page_size) * tiles.token_ns;
    result.tile_ns = std::max(result.tile_ns, longest + WorkCost::kItem);
    counts.items += splits * tiles.tiles;
    work += static_cast<double>(columns * page_size) * tiles.all_token_ns;
    counts.queries = std::max<int64_t>(counts.queries, run.query_end);
    counts.pages += columns + run.room;
    if (!run.whole_path || splits > 1) {
      counts.partials += splits * tiles.rows();
      counts.merges += splits * (run.query_end - run.query_begin);
    }
  }
  work += static_cast<double>(counts.items) * WorkCost::kItem;
  work += static_cast<double>(counts.partials) * WorkCost(shape).partial_row();
  // Tiles start longest first; the last tiles leave half the time of a long one idle.
  const double attention =
      std::max(result.tile_ns, work * shape.num_kv_heads / shape.num_sms + result.tile_ns / 2);
  result.ns = attention + (counts.partials > 0 ? WorkCost::kMergeLaunch : 0);
  return result;
}

WorkList lay_out(const OrderedBranches& branches, const WorkSchedule& schedule, const WorkShape& shape,
                 int64_t page_size) {
  Builder builder(branches, shape, page_size);
  for (size_t r = 0; r < schedule.runs.size(); ++r) {
    builder.add(schedule.runs[r], schedule.tiles[r], schedule.split_columns(r, page_size));
  }
  return builder.finish();
}

}  // namespace tts
