// Attention of many queries over the pages of a tree. Each shared page is read once for all queries below it.
#pragma once

#include <cstdint>

#include "common/plan_records.h"
#include "cpu/kv_layout.h"

namespace tts {

// A TreePlan (tree/plan.h) as arrays; i counts queries in depth-first order.
struct PlanView {
  const int32_t* query_order;     // [num_queries] i -> row of q, out and lse
  const int32_t* query_position;  // [num_queries] position of query i, which sees tokens 0..position
  const QueryBlock* blocks;       // [num_blocks]
  const Segment* segments;        // [num_segments]
  const int32_t* pages;           // [num_pages] or kHole
  int64_t num_queries, num_blocks, num_segments, num_pages;
};

struct TreeAttentionParams {
  KVView kv;
  PlanView plan;
  const void* q;  // [num_queries, num_q_heads, head_dim], strides in elements
  DType q_dtype;  // of q and out: the pages' dtype, or float32 or bfloat16 for int8 pages
  int64_t q_token_stride, q_head_stride;
  int num_q_heads;
  void* out;   // [num_queries, num_q_heads, head_dim], contiguous
  float* lse;  // [num_queries, num_q_heads], natural logarithm, sinks included; or null
  float scale;
  int window;      // maximum number of tokens a query sees, itself included; 0: all
  float soft_cap;  // c > 0: logits become c tanh(logit / c); 0: none
  // Sparse: bit c % 32 of word c / 32 of mask[h, row of q] is set if the query reads column c of its path for
  // KV head h. Null: queries read all columns.
  const int32_t* mask = nullptr;  // [num_kv_heads, num_queries, mask_words]
  int64_t mask_words = 0;
  // Each page's share of the softmax, averaged over the query heads of a KV head; 0 for pages that a query
  // does not read.
  float* mass = nullptr;  // [num_kv_heads, num_queries, mass_columns], or null
  int64_t mass_columns = 0;
  // A logit per query head that counts in the softmax but has no value; null: none.
  const float* sinks = nullptr;  // [num_q_heads]
  // ALiBi: subtracted from a logit, after any cap, per position of distance between query and key; null:
  // none.
  const float* slopes = nullptr;  // [num_q_heads]
  int attention_chunk = 0;        // a query sees no key before the last multiple of this; 0: none
};

// Throws ArgumentError before anything is written if an index of the plan is outside its arrays or the pool.
// A row that reads nothing is (0, -inf), or (0, sink) with a sink. A row's bits depend only on its own query,
// path and position, not on other rows, blocks or threads.
void tree_attention(const TreeAttentionParams& params, int num_threads);

// tree_attention in two parts: the checks that throw ArgumentError, and the computation.
void check_tree_attention(const TreeAttentionParams& params);
void run_tree_attention(const TreeAttentionParams& params, int num_threads);

}  // namespace tts
