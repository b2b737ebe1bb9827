// Moves keys and values into and out of packed pages (kv_layout.h). Every index is checked before anything is
// written; a bad index throws ArgumentError.
#pragma once

#include <cstdint>

#include "cpu/kv_layout.h"

namespace tts {

// One layer's keys or values as rows: [num_tokens, num_kv_heads, head_dim], strides in elements, channels
// contiguous.
struct TokenRows {
  void* data;
  int64_t token_stride, head_stride;
  DType dtype;  // the pages' dtype, or float32 or bfloat16 for int8 pages
};

// Throws ArgumentError unless all slots are in the pool.
void check_slots(const KVView& kv, const int32_t* slots, int64_t num_tokens);

// Writes token i into slot slots[i] = page * 16 + offset. If a slot occurs twice, the last token wins. Rows
// for int8 pages are float32 or bfloat16, quantized page by page (append_int8.h). A written page's summary
// then covers its slots from the first to the last one written here.
void append_kv(const KVView& kv, const TokenRows& k, const TokenRows& v, const int32_t* slots,
               int64_t num_tokens, const SummaryView& summaries, int num_threads);

// Copies whole pages and their summaries in every layer, (source, destination) pairs in order. `kv` is layer
// 0; layer strides are in elements. `summaries` has a leading dimension of layers.
void copy_pages(const KVView& kv, int num_layers, int64_t k_layer_stride, int64_t v_layer_stride,
                const int32_t* copies, int64_t num_copies, const SummaryView& summaries, int num_threads);

// Reads positions 0..length-1 of a block table back into rows; int8 pages give float32.
void gather_kv(const KVView& kv, const int32_t* block_table, int64_t num_table_pages, int64_t length,
               const TokenRows& k, const TokenRows& v, int num_threads);

}  // namespace tts
