// What one instruction-set level provides to tree_attention.cpp: softmax attention of one query block and KV
// head over one chunk of the path. Plain data only: each level is compiled with its own flags and must not
// share inline code with the rest.
#pragma once

#include <cstdint>

#include "common/plan_records.h"
#include "cpu/kv_layout.h"

namespace tts {

// Softmax runs in tiles, states are merged in chunks, both at fixed positions of the path: a row's arithmetic
// does not depend on which other rows are computed beside it.
constexpr int kTileTokens = kTilePages * kPageSize;
// Words from row to row of a tile's scores: a cache line more, so that rows do not meet in the same sets of
// the L1 cache (1 to 2 % of a fan-out on AMX tiles, nothing without them).
constexpr int kScoreRow = kTileTokens + 16;
constexpr int kChunkTiles = 4;

// Where a block's rows leave what their mass per page is made of. Sparse and dense.
struct MassExport {
  float* sums;  // [rows, num_columns] sum of 2^(logit - m) over the tokens of the page; 0 where none is read
  float* m;     // [rows, tiles of num_columns], the m of the tile's pages
  int64_t num_columns;
};

struct ChunkTask {
  KVView kv;
  int kv_head;
  int group;  // query heads per KV head; row = (query - query_begin) * group + head in group
  int query_begin, query_end;
  const int32_t* position;  // of every query of the plan
  const Segment* segment_begin;
  const Segment* segment_end;
  const int32_t* pages;
  float scale, soft_cap;  // soft_cap 0: none
  int window;             // 0: none
  int attention_chunk;    // see TreeAttentionParams; 0: none
  const float* slopes;    // [group], see TreeAttentionParams; null: none
  // Sparse: bit c % 32 of word c / 32 of mask[row of q] says whether a query reads column c; null: all.
  const int32_t* mask;  // of the KV head: [num_queries, mask_words]
  int64_t mask_words;
  const int32_t* query_order;  // of every query of the plan: its row of q
  const MassExport* mass;      // null: none
};

// State of a softmax over part of the path: the result is acc / l, its base-2 log-sum-exp m + log2(l).
// A row that has seen nothing is (-inf, 0, 0).
struct AttentionState {
  float* m;    // [rows] largest logit, in units of log2
  float* l;    // [rows] sum of 2^(logit - m)
  float* acc;  // [rows, head_dim] sum of 2^(logit - m) * v
};

struct ChunkScratch {
  uint32_t* q;         // [rows, head_dim] rows as pack_q left them
  uint32_t* s;         // [rows, kScoreRow] scores, then probabilities
  float* scales;       // [queries, 2, kTilePages] of K and V of the tile's pages, where those are int8
  uint32_t* operands;  // [5 * kPageSize * head_dim] pages as the micro-kernels read them
};

struct AttentionKernels {
  // One row of queries, float32 or bfloat16, into words: a float, or a pair of bfloat16, per word.
  void (*pack_q)(const void* row, DType dtype, int head_dim, uint32_t* words);
  // Sets `state` to that of the chunk that the task's segments span.
  void (*attend_chunk)(const ChunkTask& task, const ChunkScratch& scratch, const AttentionState& state);
  // The same for the pages that the task's mask lets a query read; pages of id -1 are read by nobody. With
  // all pages in the mask the bits are those of attend_chunk.
  void (*attend_chunk_sparse)(const ChunkTask& task, const ChunkScratch& scratch,
                              const AttentionState& state);
};

}  // namespace tts
