// Attention over a work list (common/work_records.h) on a GPU. Includes no CUDA header.
#pragma once

#include <cstdint>

#include "common/work_records.h"
#include "cuda/kv_ops.h"

namespace tts::cuda {

enum class DType : int32_t { kFloat16, kBFloat16 };

struct WorkLaunch {
  const int32_t* work;  // on the device, laid out as WorkLayout(capacity)
  float* partials;
  WorkCapacity capacity;
  int64_t num_items;   // items launched per KV head; the header of `work` has the actual number
  int64_t num_merges;  // queries, then padding rows, that the merge covers; 0: nothing is merged
};

struct TreeAttention {
  Pages pages;
  Rows q;              // [num_q_rows, num_q_heads, head_dim] of the pages' dtype
  int64_t num_q_rows;  // below 2^31
  int32_t num_q_heads;
  DType dtype;
  WorkLaunch launch;
  void* out;       // [num_q_rows, num_q_heads, head_dim] of `dtype`, contiguous
  float* lse;      // [num_q_rows, num_q_heads], natural logarithm
  float scale;     // > 0
  int32_t window;  // a query at position p sees positions max(0, p - window + 1) .. p; 0: all up to p
  float soft_cap;  // c: a scaled logit s becomes c * tanh(s / c); 0: none
  const float* sinks =
      nullptr;  // [num_q_heads], a logit per head without a value, counted in lse; null: none
};

// Supports head_dim 64 and 128 and tile heights 16 and 64. Queries of the work list without a row in q are
// skipped. Rows of out and lse that the work list does not cover are (0, -inf) below num_merges and unchanged
// from there on. The bits do not depend on the order in which blocks run. Throws as in kv_ops.h.
void tree_attention(const TreeAttention& call, void* stream);

}  // namespace tts::cuda
