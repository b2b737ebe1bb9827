// Selects the pages each query reads, from a score per page.
#pragma once

#include <cstdint>

#include "common/plan_records.h"
#include "cpu/tree_attention.h"

namespace tts {

struct SelectTopPagesParams {
  const float* scores;  // [num_kv_heads, num_queries, num_columns], >= 0, contiguous
  int num_kv_heads;
  int64_t num_queries, num_columns;
  const int32_t* query_order;     // [num_queries] depth-first number -> row of scores and mask
  const int32_t* query_position;  // [num_queries] by depth-first number
  const PlannedBranch* branches;  // [num_branches], depth-first
  int64_t num_branches;
  const int32_t* budget;  // [num_queries] by row: pages to read, including those always kept
  double top_p;           // > 0; infinity: none
  int sink, recent;
  const int32_t* tail_begin;  // [num_queries] by row: first column of the tail, always kept; null: no tails
  const int32_t* groups;      // [num_queries] by row: equal entries choose together; null: each row alone
  int32_t* mask;              // [num_kv_heads, num_queries, ceil(num_columns / 32)], contiguous
};

// tts_kernels.select_top_pages documents the rule. Throws ArgumentError if the plan's numbers do not fit.
void select_top_pages(const SelectTopPagesParams& params, int num_threads);

// Counts of a selection over one plan. pairs: (query, page, KV head) triples read; loads: distinct (page, KV
// head) pairs among them. Throws ArgumentError as tree_attention does.
struct SelectionCounts {
  int64_t pairs, loads;
};
SelectionCounts count_selected(const PlanView& plan, const int32_t* mask, int num_kv_heads,
                               int64_t mask_words, int num_pool_pages);

}  // namespace tts
