// A TreePlan in one int32 buffer: the header, then
//   query_order [T], query_position [T], pages [N], segments [S, 5], blocks [K, 4], branches [B, 3]
// as plan.h and plan_records.h describe them, then zeros up to a coarse size, so that plans of successive
// steps have the same length, hence the same form (bindings/bind_forms.cpp).
#pragma once

#include <cstdint>

#include "tree/plan.h"

namespace tts {

struct PlanHeader {
  int32_t num_queries;   // T
  int32_t num_pages;     // N
  int32_t num_segments;  // S
  int32_t num_blocks;    // K
  int32_t num_branches;  // B
  int32_t max_columns;   // largest number of pages that a query sees
  int32_t page_size;     // tokens per page
  int32_t padding;       // zeros at the end
};

struct PlanBuffer {
  const PlanHeader* header;
  const int32_t *query_order, *query_position, *pages;
  const Segment* segments;
  const QueryBlock* blocks;
  const PlannedBranch* branches;
};

int64_t plan_ints(const TreePlan& plan);  // including the padding

void write_plan(const TreePlan& plan, int32_t page_size, int32_t* buffer);  // of plan_ints(plan)

// Throws ArgumentError unless the header describes exactly `ints` ints, padding included. Does not check the
// indices after the header.
PlanBuffer read_plan(const int32_t* buffer, int64_t ints);

}  // namespace tts
