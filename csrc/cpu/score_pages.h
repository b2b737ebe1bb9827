// Estimated share of each page in the attention of each query, from the summaries of the pages.
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
  int64_t num_columns;  // most pages that a query sees, or more
};

// A page of n tokens that the query sees stands for n keys with the logit scale * q . mean, or with the upper
// bound scale * sum of max(q min, q max); or the largest scale * q . mean of its quarters; the score is the
// softmax of that over the pages, mean over the query heads of the KV head. 0 for pages that a query does not
// see. As in tree_attention, the bits of a row depend on its own query and path only.
//
// Throws ArgumentError where an index of the plan leads outside its arrays or the pool, and, with some scores
// written, where a row's scores are not finite.
void score_pages(const ScorePagesParams& params, int num_threads);

}  // namespace tts
