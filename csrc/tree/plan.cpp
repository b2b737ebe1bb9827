#include "tree/plan.h"

#include <algorithm>
#include <limits>

#include "common/error.h"

namespace tts {
namespace {

constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();

// The part of a row whose queries are in one block.
struct Piece {
  const int32_t* pages;
  int32_t visible;      // pages seen by the last of these queries
  int32_t shared;       // leading pages shared with the previous piece
  int32_t query_begin;  // depth-first
  int32_t query_end;
};

// Emits the segments of pieces [begin, end) in columns [column, tile_end). The pieces agree in earlier
// columns.
void emit_segments(const Piece* begin, const Piece* end, int32_t column, int32_t tile_end, TreePlan& plan) {
  while (begin < end) {
    // Finds the longest run of pieces that share this column, and the columns in which they all agree.
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
  require(in.query_block >= 1, "query_block: got ", in.query_block, ", expected at least 1");
  std::vector<BranchRow> rows = checked_rows(in.branches);
  const std::vector<int32_t> shared = sort_depth_first(rows);

  TreePlan plan;
  int64_t num_queries = 0;
  for (const BranchRow& row : rows) num_queries += row.num_queries;
  plan.query_order.reserve(num_queries);
  plan.query_position.reserve(num_queries);
  plan.branches.reserve(rows.size());

  std::vector<Piece> pieces;  // of the block being filled
  int64_t room = in.query_block;
  for (size_t r = 0; r < rows.size(); ++r) {
    const BranchRow& row = rows[r];
    plan.logical_pages += row.num_pages - row.num_holes;
    plan.unique_pages += row.num_pages - shared[r];
    if (row.num_holes > 0)
      plan.unique_pages -= std::count(row.pages + shared[r], row.pages + row.num_pages, kHole);
    const auto first_query = static_cast<int32_t>(plan.query_order.size());
    plan.branches.push_back({first_query, first_query + row.num_queries, shared_pages(row, shared[r])});
    plan.max_columns = std::max(plan.max_columns, row.num_pages);
    for (int32_t q = 0; q < row.num_queries;) {
      const auto count = static_cast<int32_t>(std::min<int64_t>(room, row.num_queries - q));
      const auto query_begin = static_cast<int32_t>(plan.query_order.size());
      for (const int32_t stop = q + count; q < stop; ++q) {
        plan.query_order.push_back(row.first_query + q);
        plan.query_position.push_back(row.length - row.num_queries + q);
      }
      const int32_t visible = plan.query_position.back() / static_cast<int32_t>(in.branches.page_size) + 1;
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
