#include "tree/work_runs.h"

#include <algorithm>
#include <utility>

namespace tts {
namespace {

// Cost of reading one token for a number of queries.
struct Reading {
  double token = 0;  // ns
  int64_t tiles = 0;
};

Reading reading(int64_t queries, const WorkShape& shape, const WorkCost& cost) {
  const int64_t rows = queries * shape.group;
  const int64_t full = rows / shape.max_height;
  const int64_t rest = rows % shape.max_height;
  Reading result{full * cost.token(shape.max_height), full};
  if (rest > 0) {
    result.token += cost.token(tile_height(rest, shape.max_height));
    ++result.tiles;
  }
  return result;
}

int32_t tail_room(int64_t page_size) {
  return static_cast<int32_t>((kTailTokens + page_size - 1) / page_size);
}

// Rows [begin, end) agree in the columns before `column`; columns from `from` on are not in a run yet.
struct Node {
  int32_t begin;
  int32_t end;
  int32_t from;
};

}  // namespace

int32_t tile_height(int64_t rows, int32_t max_height) {
  const int32_t height = rows <= 16 ? 16 : rows <= 64 ? 64 : 128;
  return std::min(height, max_height);
}

OrderedBranches::OrderedBranches(std::vector<BranchRow> branches) : rows(std::move(branches)) {
  shared = sort_depth_first(rows);
  query_begin.reserve(rows.size() + 1);
  query_begin.push_back(0);
  for (const BranchRow& row : rows) query_begin.push_back(query_begin.back() + row.num_queries);
}

std::vector<WorkRun> shared_runs(const OrderedBranches& branches, const WorkShape& shape, int64_t page_size,
                                 Sharing sharing) {
  const WorkCost cost(shape);
  const std::vector<BranchRow>& rows = branches.rows;
  std::vector<WorkRun> runs;
  std::vector<Node> nodes;
  std::vector<Node> children;
  if (!rows.empty()) nodes.push_back({0, static_cast<int32_t>(rows.size()), 0});
  while (!nodes.empty()) {
    const auto [begin, end, from] = nodes.back();
    nodes.pop_back();
    const BranchRow& first = rows[begin];
    const int32_t query_begin = branches.query_begin[begin];
    const int32_t query_end = branches.query_begin[end];
    if (end - begin == 1) {
      if (from < first.num_pages) {
        const bool tail = first.num_queries == 1;
        runs.push_back({first.pages, from, first.num_pages, query_begin, query_end, from == 0, tail,
                        tail ? tail_room(page_size) : 0});
      }
      continue;
    }
    const int32_t agreed =
        *std::min_element(branches.shared.begin() + begin + 1, branches.shared.begin() + end);
    children.clear();
    for (int32_t child = begin; child < end;) {
      int32_t next = child + 1;
      while (next < end && branches.shared[next] > agreed) ++next;
      children.push_back({child, next, from});
      child = next;
    }
    if (agreed > from) {
      const Reading once = reading(query_end - query_begin, shape, cost);
      Reading again;
      int64_t going_on = 0;  // queries whose path continues
      for (const Node& child : children) {
        const int64_t queries = branches.query_begin[child.end] - branches.query_begin[child.begin];
        const Reading below = reading(queries, shape, cost);
        again.token += below.token;
        again.tiles += below.tiles;
        if (rows[child.begin].num_pages > agreed) going_on += queries;
      }
      // A separate run makes a partial result of every row that continues, and another of the rest of its
      // path, unless that was already cut.
      const int64_t partials = going_on * shape.group * (from == 0 ? 2 : 1);
      const double tokens = static_cast<double>((agreed - from) * page_size);
      const double saved = tokens * (again.token - once.token);
      if (sharing == Sharing::kAlways ||
          saved > once.tiles * WorkCost::kItem + partials * cost.partial_row()) {
        runs.push_back(
            {first.pages, from, agreed, query_begin, query_end, from == 0 && going_on == 0, false, 0});
        for (Node& child : children) child.from = agreed;
      }
    }
    nodes.insert(nodes.end(), children.rbegin(), children.rend());
  }
  return runs;
}

std::vector<WorkRun> plain_runs(const OrderedBranches& branches, int64_t page_size) {
  std::vector<WorkRun> runs;
  for (size_t r = 0; r < branches.rows.size(); ++r) {
    const BranchRow& row = branches.rows[r];
    const bool tail = row.num_queries == 1;
    runs.push_back({row.pages, 0, row.num_pages, branches.query_begin[r], branches.query_begin[r + 1], true,
                    tail, tail ? tail_room(page_size) : 0});
  }
  return runs;
}

std::vector<WorkRun> chunk_runs(const OrderedBranches& branches, int64_t page_size) {
  const auto chunk = static_cast<int32_t>(std::max<int64_t>(1, kChunkTokens / page_size));
  const std::vector<BranchRow>& rows = branches.rows;
  std::vector<WorkRun> runs;
  int32_t deepest = 0;
  for (const BranchRow& row : rows) deepest = std::max(deepest, row.num_pages);
  for (int32_t column = 0; column < deepest; column += chunk) {
    for (size_t r = 0; r < rows.size();) {
      const int32_t stop = std::min(rows[r].num_pages, column + chunk);
      bool ends = rows[r].num_pages == stop;  // the path of all these rows ends here
      size_t next = r + 1;
      for (; next < rows.size() && branches.shared[next] >= stop &&
             std::min(rows[next].num_pages, column + chunk) == stop;
           ++next) {
        ends = ends && rows[next].num_pages == stop;
      }
      if (stop > column) {
        const bool tail = ends && next == r + 1 && rows[r].num_queries == 1;
        // Not beyond the chunk, where a new plan would begin another one.
        const int32_t room = tail ? std::min(tail_room(page_size), column + chunk - stop) : 0;
        runs.push_back({rows[r].pages, column, stop, branches.query_begin[r], branches.query_begin[next],
                        ends && column == 0, tail, room});
      }
      r = next;
    }
  }
  return runs;
}

}  // namespace tts
