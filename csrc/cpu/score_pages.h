// Estimates each page's share of each query's attention from the page summaries.
#pragma once

#include <cstdint>

#include "cpu/kv_layout.h"
#include "cpu/tree_attention.h"

namespace tts {

struct ScorePagesParams {
  SummaryView summaries;
  int num_pages, num_kv_heads, head_dim;
  DType summary_dtype;  // float32 or bfloat16
  PlanView plan;
  const void* q;  // [num_queries, num_q_heads, head_dim], strides in elements
  DType q_dtype;  // float32 or bfloat16
  int64_t q_token_stride, q_head_stride;
  int num_q_heads;
  float scale;
  float* scores;        // [num_kv_heads, num_queries, num_columns], contiguous
  int64_t num_columns;  // at least the largest number of pages that a query sees
};

// A page with n tokens visible to the query stands for n keys with one logit: scale * q . mean, the upper
// bound scale * sum of max(q min, q max), or the largest scale * q . mean of its quarters. The score is the
// softmax of these over the pages, averaged over the query heads of the KV head; 0 for pages that a query
// does not see. As in tree_attention, a row's bits depend only on its own query and path.
//
// Throws ArgumentError if an index of the plan is outside its arrays or the pool and, with some scores
// already written, if a row's scores are not finite.
void score_pages(const ScorePagesParams& params, int num_threads);

}  // namespace tts
