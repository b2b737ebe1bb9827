// Kernels that an instruction-set level provides to tree_attention.cpp: softmax attention of one query block
// and KV head over one chunk of the path. Plain data only, as each level is compiled with its own flags and
// must not share inline code with the rest.
#pragma once

#include <cstdint>

#include "common/plan_records.h"
#include "cpu/kv_layout.h"

namespace tts {

// Softmax runs in tiles and states are merged in chunks, both at fixed path positions, so a row's arithmetic
// does not depend on the rows computed beside it.
constexpr int kTileTokens = kTilePages * kPageSize;
// Words between rows of a tile's scores: one cache line of padding, so that rows do not share sets of the L1
// cache (gains 1 to 2 % of a fan-out on AMX tiles, nothing without them).
constexpr int kScoreRow = kTileTokens + 16;
constexpr int kChunkTiles = 4;

// Where a block's rows write the parts of their mass per page, for sparse and dense attention.
struct MassExport {
  float* sums;  // [rows, num_columns] sum of 2^(logit - m) over the page's tokens; 0 if none is read
  float* m;     // [rows, tiles of num_columns], m of the tile's pages
  int64_t num_columns;
};

struct ChunkTask {
  KVView kv;
  int kv_head;
  int group;  // query heads per KV head; row = (query - query_begin) * group + head in group
  int query_begin, query_end;
  const int32_t* position;  // of all queries of the plan
  const Segment* segment_begin;
  const Segment* segment_end;
  const int32_t* pages;
  float scale, soft_cap;  // soft_cap 0: none
  int window;             // 0: none
  int attention_chunk;    // see TreeAttentionParams; 0: none
  const float* slopes;    // [group], see TreeAttentionParams; null: none
  // Sparse: bit c % 32 of word c / 32 of mask[row of q] says whether the query reads column c; null: queries
  // read all.
  const int32_t* mask;  // of the KV head: [num_queries, mask_words]
  int64_t mask_words;
  const int32_t* query_order;  // row of q of each query of the plan
  const MassExport* mass;      // null: none
};

// Softmax state over part of the path. The result is acc / l, and its base-2 log-sum-exp is m + log2(l). A
// row that has seen nothing is (-inf, 0, 0).
struct AttentionState {
  float* m;    // [rows] largest logit, in units of log2
  float* l;    // [rows] sum of 2^(logit - m)
  float* acc;  // [rows, head_dim] sum of 2^(logit - m) * v
};

struct ChunkScratch {
  uint32_t* q;         // [rows, head_dim] rows as pack_q writes them
  uint32_t* s;         // [rows, kScoreRow] scores, then probabilities
  float* scales;       // [queries, 2, kTilePages] K and V scales of the tile's pages, for int8 pages
  uint32_t* operands;  // [5 * kPageSize * head_dim] pages as the micro-kernels read them
};

struct AttentionKernels {
  // Packs one row of queries, float32 or bfloat16, into words of a float or a pair of bfloat16.
  void (*pack_q)(const void* row, DType dtype, int head_dim, uint32_t* words);
  // Sets `state` to the softmax state of the chunk that the task's segments span.
  void (*attend_chunk)(const ChunkTask& task, const ChunkScratch& scratch, const AttentionState& state);
  // The same over only the pages that the task's mask selects for a query; pages with id -1 are never read.
  // If the mask selects all pages, the bits equal attend_chunk's.
  void (*attend_chunk_sparse)(const ChunkTask& task, const ChunkScratch& scratch,
                              const AttentionState& state);
};

}  // namespace tts
