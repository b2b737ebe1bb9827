// CPU plans as the Python ops pass them.
#pragma once

#include <cstdint>
#include <utility>

#include "bindings/arguments.h"
#include "common/error.h"
#include "cpu/tree_attention.h"
#include "tree/plan_buffer.h"

namespace tts {

using Strides = std::pair<int64_t, int64_t>;

// Address and length of a TreePlan's int32 buffer.
using PlanInts = std::pair<uintptr_t, int64_t>;

// rows: number of rows of q, or of any other array with one row per query.
inline PlanBuffer open_plan(PlanInts ints, int64_t rows) {
  const PlanBuffer plan = read_plan(pointer<int32_t>(ints.first), ints.second);
  require(plan.header->page_size == kPageSize, "plan.page_size: got ", plan.header->page_size, ", expected ",
          kPageSize, "; plan with page_size=", kPageSize);
  require(plan.header->num_queries == rows, "plan: got one of ", plan.header->num_queries,
          " queries, expected ", rows, ", the rows of q");
  return plan;
}

inline PlanView view_plan(PlanInts ints, int64_t rows) {
  const PlanBuffer plan = open_plan(ints, rows);
  return {plan.query_order,
          plan.query_position,
          plan.blocks,
          plan.segments,
          plan.pages,
          plan.header->num_queries,
          plan.header->num_blocks,
          plan.header->num_segments,
          plan.header->num_pages};
}

}  // namespace tts
