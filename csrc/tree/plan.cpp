#include "tree/plan.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <unordered_map>

#include "common/error.h"

namespace tts {
namespace {

constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();

struct Row {
  const int32_t* pages;
  int32_t num_pages;
  int32_t length;
  int32_t num_queries;
  int32_t first_query;  // row of q
};

// One row a branch that has queries, in argument order.
std::vector<Row> checked_rows(const PlanInput& in) {
  require(in.page_size >= 1 && in.page_size <= kMaxInt32, "page_size: got ", in.page_size,
          ", expected at least 1");
  require(in.query_block >= 1, "query_block: got ", in.query_block, ", expected at least 1");
  std::vector<Row> rows;
  rows.reserve(in.num_branches);
  int64_t first_query = 0;
  for (int64_t b = 0; b < in.num_branches; ++b) {
    const int64_t length = in.lengths[b];
    const int64_t num_queries = in.query_lens[b];
    require(0 <= length && length <= in.table_width * in.page_size, "lengths[", b, "]: got ", length,
            ", expected 0 <= length <= ", in.table_width * in.page_size, ", what ", in.table_width,
            " pages of ", in.page_size, " tokens hold; pass wider block_tables");
    require(0 <= num_queries && num_queries <= length, "query_lens[", b, "]: got ", num_queries,
            ", expected 0 <= query_lens <= ", length, "; lengths count the new tokens too");
    const int32_t* pages = in.block_tables + b * in.table_width;
    const int32_t num_pages = static_cast<int32_t>((length + in.page_size - 1) / in.page_size);
    for (int32_t column = 0; column < num_pages; ++column) {
      require(pages[column] >= 0, "block_tables[", b, ", ", column, "]: got ", pages[column],
              ", expected a page id; the first ", num_pages, " entries of a branch of ", length,
              " tokens are used");
    }
    if (num_queries == 0) continue;
    rows.push_back({pages, num_pages, static_cast<int32_t>(length), static_cast<int32_t>(num_queries),
                    static_cast<int32_t>(first_query)});
    first_query += num_queries;
    require(first_query <= kMaxInt32, "query_lens: got more than ", kMaxInt32,
            " queries; plan fewer at once");
  }
  return rows;
}

// The columns from `column` on in which all rows agree end here.
int32_t agreed_columns(const Row* begin, const Row* end, int32_t column) {
  int32_t agreed = begin->num_pages;
  for (const Row* row = begin + 1; row < end; ++row) {
    const int32_t* last = begin->pages + std::min(agreed, row->num_pages);
    agreed = static_cast<int32_t>(std::mismatch(begin->pages + column, last, row->pages + column).first -
                                  begin->pages);
  }
  return agreed;
}

// Sorts rows depth-first: a stable partition by the page in the first column where rows differ, then again
// within each part. Returns for each row how many leading pages it shares with the row before it (0 for the
// first).
std::vector<int32_t> sort_depth_first(std::vector<Row>& rows) {
  struct Part {
    int32_t begin, end, column;  // rows [begin, end) agree in the columns before `column`
  };
  std::vector<int32_t> shared(rows.size(), 0);
  std::vector<Part> parts{{0, static_cast<int32_t>(rows.size()), 0}};
  std::unordered_map<int32_t, int32_t> group_of_page;
  std::vector<int32_t> group(rows.size());  // of the row at this place
  std::vector<int32_t> group_end;
  std::vector<Row> sorted(rows.size());
  while (!parts.empty()) {
    const auto [begin, end, from] = parts.back();
    parts.pop_back();
    if (end - begin < 2) continue;
    const int32_t column = agreed_columns(&rows[begin], rows.data() + end, from);

    // Groups in order of appearance; group 0 is of the rows that end here.
    group_of_page.clear();
    group_end.assign(1, 0);
    for (int32_t i = begin; i < end; ++i) {
      group[i] = 0;
      if (rows[i].num_pages > column) {
        const auto next = static_cast<int32_t>(group_end.size());
        const auto [found, is_new] = group_of_page.try_emplace(rows[i].pages[column], next);
        if (is_new) group_end.push_back(0);
        group[i] = found->second;
      }
      ++group_end[group[i]];
    }
    // Counting sort: group_end holds counts, then where each group begins, and in the end where each ends.
    std::exclusive_scan(group_end.begin(), group_end.end(), group_end.begin(), begin);
    for (int32_t i = begin; i < end; ++i) sorted[group_end[group[i]]++] = rows[i];
    std::copy(sorted.begin() + begin, sorted.begin() + end, rows.begin() + begin);

    for (int32_t i = begin + 1; i < group_end[0]; ++i) shared[i] = column;
    for (size_t g = 1; g < group_end.size(); ++g) {
      const int32_t first = group_end[g - 1];
      if (first > begin) shared[first] = column;
      parts.push_back({first, group_end[g], column + 1});
    }
  }
  return shared;
}

// The part of one row whose queries lie in one block.
struct Piece {
  const int32_t* pages;
  int32_t visible;      // pages that the last of these queries sees
  int32_t shared;       // leading pages shared with the piece before
  int32_t query_begin;  // depth-first
  int32_t query_end;
};

// Emits the segments of pieces [begin, end) in columns [column, tile_end). The pieces agree in the columns
// before.
void emit_segments(const Piece* begin, const Piece* end, int32_t column, int32_t tile_end, TreePlan& plan) {
  while (begin < end) {
    // The longest run of pieces that share this column, and how far they all agree.
    const Piece* run = begin + 1;
    int32_t agreed = kMaxInt32;
    for (; run < end && run->shared > column; ++run) agreed = std::min(agreed, run->shared);
    const bool alone = run == begin + 1;
    const int32_t stop = std::min(alone ? begin->visible : agreed, tile_end);
    if (stop > column) {
      const int64_t offset = static_cast<int64_t>(plan.pages.size());
      require(offset + (stop - column) <= kMaxInt32, "query_block: the plan has more than ", kMaxInt32,
              " page visits; use larger blocks or plan fewer queries at once");
      plan.pages.insert(plan.pages.end(), begin->pages + column, begin->pages + stop);
      plan.segments.push_back(
          {static_cast<int32_t>(offset), column, stop - column, begin->query_begin, (run - 1)->query_end});
      if (!alone && stop < tile_end) emit_segments(begin, run, stop, tile_end, plan);
    }
    begin = run;
  }
}

void emit_block(const std::vector<Piece>& pieces, TreePlan& plan) {
  const auto segment_begin = static_cast<int32_t>(plan.segments.size());
  int32_t deepest = 0;
  for (const Piece& piece : pieces) deepest = std::max(deepest, piece.visible);
  for (int32_t tile = 0; tile < deepest; tile += kTilePages) {
    emit_segments(pieces.data(), pieces.data() + pieces.size(), tile, tile + kTilePages, plan);
  }
  plan.blocks.push_back({pieces.front().query_begin, pieces.back().query_end, segment_begin,
                         static_cast<int32_t>(plan.segments.size())});
}

}  // namespace

TreePlan plan(const PlanInput& in) {
  std::vector<Row> rows = checked_rows(in);
  const std::vector<int32_t> shared = sort_depth_first(rows);

  TreePlan plan;
  int64_t num_queries = 0;
  for (const Row& row : rows) num_queries += row.num_queries;
  plan.query_order.reserve(num_queries);
  plan.query_position.reserve(num_queries);

  std::vector<Piece> pieces;  // of the block being filled
  int64_t room = in.query_block;
  for (size_t r = 0; r < rows.size(); ++r) {
    const Row& row = rows[r];
    plan.logical_pages += row.num_pages;
    plan.unique_pages += row.num_pages - shared[r];
    for (int32_t q = 0; q < row.num_queries;) {
      const auto count = static_cast<int32_t>(std::min<int64_t>(room, row.num_queries - q));
      const auto query_begin = static_cast<int32_t>(plan.query_order.size());
      for (const int32_t stop = q + count; q < stop; ++q) {
        plan.query_order.push_back(row.first_query + q);
        plan.query_position.push_back(row.length - row.num_queries + q);
      }
      const int32_t visible = plan.query_position.back() / static_cast<int32_t>(in.page_size) + 1;
      pieces.push_back({row.pages, visible, shared[r], query_begin, query_begin + count});
      room -= count;
      if (room == 0) {
        emit_block(pieces, plan);
        pieces.clear();
        room = in.query_block;
      }
    }
  }
  if (!pieces.empty()) emit_block(pieces, plan);
  return plan;
}

}  // namespace tts
