// Attention of many queries over the pages of a tree, each shared page read once for all queries below it.
#pragma once

#include <cstdint>

#include "common/plan_records.h"
#include "cpu/kv_layout.h"

namespace tts {

// A TreePlan (tree/plan.h) as arrays; i counts queries in depth-first order.
struct PlanView {
  const int32_t* query_order;     // [num_queries] i -> row of q, out and lse
  const int32_t* query_position;  // [num_queries] position of query i: it sees the tokens 0..position
  const QueryBlock* blocks;       // [num_blocks]
  const Segment* segments;        // [num_segments]
  const int32_t* pages;           // [num_pages] or kHole
  int64_t num_queries, num_blocks, num_segments, num_pages;
};

struct TreeAttentionParams {
  KVView kv;
  PlanView plan;
  const void* q;  // [num_queries, num_q_heads, head_dim], strides in elements
  DType q_dtype;  // of q and out: the pages', or float32 or bfloat16 where those are int8
  int64_t q_token_stride, q_head_stride;
  int num_q_heads;
  void* out;   // [num_queries, num_q_heads, head_dim], contiguous
  float* lse;  // [num_queries, num_q_heads], natural logarithm, sinks included; or null
  float scale;
  int window;      // a query sees at most so many tokens, itself included; 0: all
  float soft_cap;  // c > 0: logits become c tanh(logit / c); 0: none
  // Sparse: bit c % 32 of word c / 32 of mask[h, row of q] is set where a query reads column c of its path
  // for KV head h. Null: it reads all.
  const int32_t* mask = nullptr;  // [num_kv_heads, num_queries, mask_words]
  int64_t mask_words = 0;
  // Share of each page in the softmax, mean over the query heads of a KV head; 0 where a query does not read.
  float* mass = nullptr;  // [num_kv_heads, num_queries, mass_columns], or null
  int64_t mass_columns = 0;
  // A logit of each query head that takes part in its softmax and has no value; null: none.
  const float* sinks = nullptr;  // [num_q_heads]
  // What a logit, capped or not, loses with each position that its key is behind the query (ALiBi); null:
  // nothing.
  const float* slopes = nullptr;  // [num_q_heads]
  int attention_chunk = 0;        // a query sees no key before the last multiple of it; 0: none
};

// Throws ArgumentError before anything is written if an index of the plan leads outside its arrays or the
// pool. A row that reads nothing is (0, -inf), with a sink (0, sink). The bits of a row depend on its own
// query, path and position only: not on the other rows, the blocks or the threads.
void tree_attention(const TreeAttentionParams& params, int num_threads);

// The same in two parts: all that throws ArgumentError, and the rest.
void check_tree_attention(const TreeAttentionParams& params);
void run_tree_attention(const TreeAttentionParams& params, int num_threads);

}  // namespace tts
