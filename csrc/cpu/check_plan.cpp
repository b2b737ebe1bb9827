// Plans are not trusted: every index is checked before a kernel follows it.
#include "cpu/check_plan.h"

#include <vector>

#include "common/error.h"
#include "cpu/kernels/tree_attention_kernels.h"

namespace tts {
namespace {

void check_queries(const PlanView& plan) {
  std::vector<bool> seen(static_cast<size_t>(plan.num_queries));
  for (int64_t i = 0; i < plan.num_queries; ++i) {
    const int32_t row = plan.query_order[i];
    require(row >= 0 && row < plan.num_queries && !seen[static_cast<size_t>(row)], "query_order[", i,
            "]: got ", row, ", expected each of 0..", plan.num_queries - 1, " once");
    seen[static_cast<size_t>(row)] = true;
    require(plan.query_position[i] >= 0 && plan.query_position[i] < (1 << 30), "query_position[", i,
            "]: got ", plan.query_position[i], ", expected 0 <= position < 2^30");
  }
}

void check_segments(const PlanView& plan, int64_t index, const QueryBlock& block) {
  int previous_tile = 0;
  for (int64_t s = block.segment_begin; s < block.segment_end; ++s) {
    const Segment& segment = plan.segments[s];
    require(segment.num_pages >= 1 && segment.page_offset >= 0 &&
                int64_t{segment.page_offset} + segment.num_pages <= plan.num_pages,
            "segments[", s, "]: pages ", segment.page_offset, " + ", segment.num_pages,
            " are not within the ", plan.num_pages, " of the plan");
    require(segment.query_begin >= block.query_begin && segment.query_begin < segment.query_end &&
                segment.query_end <= block.query_end,
            "segments[", s, "]: queries ", segment.query_begin, "..", segment.query_end,
            " are not within block ", index, ", queries ", block.query_begin, "..", block.query_end);
    const int tile = segment.first_page / kTilePages;
    require(segment.first_page >= 0 && segment.first_page < (1 << 26) &&
                segment.first_page % kTilePages + segment.num_pages <= kTilePages && tile >= previous_tile,
            "segments[", s, "]: first_page ", segment.first_page, " with ", segment.num_pages,
            " pages, expected segments in the order of their tiles of ", kTilePages,
            " pages and none across two");
    previous_tile = tile;
  }
}

// A query's segments must list the pages that it sees, in order and without gaps, or scores would be read
// that were never written. Pages after its position may be listed too, for later queries.
void check_coverage(const PlanView& plan) {
  std::vector<int32_t> listed(static_cast<size_t>(plan.num_queries));
  for (int64_t s = 0; s < plan.num_segments; ++s) {
    const Segment& segment = plan.segments[s];
    for (int32_t i = segment.query_begin; i < segment.query_end; ++i) {
      int32_t& next = listed[static_cast<size_t>(i)];
      require(segment.first_page == next, "segments: query ", i, " goes on in segment ", s,
              " with first_page ", segment.first_page, ", expected ", next);
      next += segment.num_pages;
      const int32_t own = plan.query_position[i] / kPageSize - segment.first_page;
      require(own < 0 || own >= segment.num_pages || plan.pages[segment.page_offset + own] != kHole, "pages[",
              segment.page_offset + own, "]: got -1, an evicted page, which holds query ", i, " itself");
    }
  }
  for (int64_t i = 0; i < plan.num_queries; ++i) {
    const int32_t expected = plan.query_position[i] / kPageSize + 1;
    require(listed[static_cast<size_t>(i)] >= expected, "segments: query ", i, " at position ",
            plan.query_position[i], " has ", listed[static_cast<size_t>(i)], " pages, expected ", expected);
  }
}

}  // namespace

void check_plan(const PlanView& plan, int num_pool_pages) {
  check_queries(plan);
  for (int64_t i = 0; i < plan.num_pages; ++i) {
    require(plan.pages[i] >= kHole && plan.pages[i] < num_pool_pages, "pages[", i, "]: got ", plan.pages[i],
            ", expected 0 <= page < ", num_pool_pages, ", or -1 for an evicted page");
  }
  int32_t next_query = 0, next_segment = 0;
  for (int64_t b = 0; b < plan.num_blocks; ++b) {
    const QueryBlock& block = plan.blocks[b];
    require(block.query_begin == next_query && block.query_end > block.query_begin &&
                block.query_end <= plan.num_queries,
            "blocks[", b, "]: got queries ", block.query_begin, "..", block.query_end,
            ", expected to go on from ", next_query, " within ", plan.num_queries);
    require(block.segment_begin == next_segment && block.segment_end >= block.segment_begin &&
                block.segment_end <= plan.num_segments,
            "blocks[", b, "]: got segments ", block.segment_begin, "..", block.segment_end,
            ", expected to go on from ", next_segment, " within ", plan.num_segments);
    check_segments(plan, b, block);
    next_query = block.query_end;
    next_segment = block.segment_end;
  }
  require(next_query == plan.num_queries && next_segment == plan.num_segments, "blocks: got ", next_query,
          " queries and ", next_segment, " segments, expected all ", plan.num_queries, " and ",
          plan.num_segments);
  check_coverage(plan);
}

void check_mask(const PlanView& plan, int64_t mask_words) {
  for (int64_t i = 0; i < plan.num_queries; ++i) {
    require(plan.query_position[i] / kPageSize < 32 * mask_words, "selection.mask: got ", mask_words,
            " words a row, expected a bit for each of the ", plan.query_position[i] / kPageSize + 1,
            " pages of query ", i, "; select with this plan");
  }
}

}  // namespace tts
