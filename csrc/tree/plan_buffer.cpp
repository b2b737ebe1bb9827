#include "tree/plan_buffer.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "common/error.h"

namespace tts {
namespace {

template <class Record>
constexpr int64_t kInts = sizeof(Record) / sizeof(int32_t);

template <class Record>
int32_t* put(const std::vector<Record>& records, int32_t* out) {
  if (!records.empty()) std::memcpy(out, records.data(), records.size() * sizeof(Record));
  return out + records.size() * kInts<Record>;
}

template <class Record>
const Record* take(const int32_t*& ints, int64_t count) {
  const auto* records = reinterpret_cast<const Record*>(ints);
  ints += count * kInts<Record>;
  return records;
}

int64_t described_ints(const PlanHeader& h) {
  return kInts<PlanHeader> + 2 * int64_t{h.num_queries} + h.num_pages + kInts<Segment> * h.num_segments +
         kInts<QueryBlock> * h.num_blocks + kInts<PlannedBranch> * h.num_branches + h.padding;
}

// Four sizes per octave.
int64_t padding_for(int64_t ints) {
  const int64_t step = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(ints))) / 4;
  return (ints + step - 1) / step * step - ints;
}

PlanHeader header_of(const TreePlan& plan, int32_t page_size) {
  PlanHeader header{static_cast<int32_t>(plan.query_order.size()),
                    static_cast<int32_t>(plan.pages.size()),
                    static_cast<int32_t>(plan.segments.size()),
                    static_cast<int32_t>(plan.blocks.size()),
                    static_cast<int32_t>(plan.branches.size()),
                    plan.max_columns,
                    page_size,
                    0};
  header.padding = static_cast<int32_t>(padding_for(described_ints(header)));
  return header;
}

}  // namespace

int64_t plan_ints(const TreePlan& plan) { return described_ints(header_of(plan, 1)); }

void write_plan(const TreePlan& plan, int32_t page_size, int32_t* buffer) {
  const PlanHeader header = header_of(plan, page_size);
  std::memcpy(buffer, &header, sizeof header);
  int32_t* out = buffer + kInts<PlanHeader>;
  out = put(plan.query_order, out);
  out = put(plan.query_position, out);
  out = put(plan.pages, out);
  out = put(plan.segments, out);
  out = put(plan.blocks, out);
  out = put(plan.branches, out);
  std::fill_n(out, header.padding, 0);
}

PlanBuffer read_plan(const int32_t* buffer, int64_t ints) {
  require(ints >= kInts<PlanHeader>, "plan: got ", ints, " numbers, expected a header of ", kInts<PlanHeader>,
          "; make it with plan(block_tables, lengths, query_lens)");
  PlanBuffer plan{};
  const int32_t* rest = buffer;
  plan.header = take<PlanHeader>(rest, 1);
  const PlanHeader& h = *plan.header;
  require(std::min({h.num_queries, h.num_pages, h.num_segments, h.num_blocks, h.num_branches, h.max_columns,
                    h.padding}) >= 0 &&
              described_ints(h) == ints,
          "plan: got a header of ", h.num_queries, " queries, ", h.num_pages, " pages, ", h.num_segments,
          " segments, ", h.num_blocks, " blocks and ", h.num_branches, " branches, expected what fills its ",
          ints, " numbers");
  plan.query_order = take<int32_t>(rest, h.num_queries);
  plan.query_position = take<int32_t>(rest, h.num_queries);
  plan.pages = take<int32_t>(rest, h.num_pages);
  plan.segments = take<Segment>(rest, h.num_segments);
  plan.blocks = take<QueryBlock>(rest, h.num_blocks);
  plan.branches = take<PlannedBranch>(rest, h.num_branches);
  return plan;
}

}  // namespace tts
