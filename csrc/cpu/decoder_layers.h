// Runs all layers of a model over one step's tokens in one call. To use another attention, call it between
// `before_attention` and `after_attention`, which give the same bits.
#pragma once

#include <array>
#include <cstdint>

#include "cpu/decoder_layer.h"
#include "cpu/kv_layout.h"
#include "cpu/tree_attention.h"

namespace tts {

// Rotations for the tokens' positions, one table after another.
struct RotaryTables {
  const float *cos, *sin;  // [num_tables, tokens, rotary_dim]
  int num_tables;
};

// Inputs shared by a step's layers. Pages, scales and summaries are layer 0's; the pages of later layers
// follow at the layer strides, in elements.
struct DecoderStep {
  RotaryTables rotary;
  DType row_dtype;  // dtype of queries, keys and values
  KVView kv;
  int64_t k_layer_stride, v_layer_stride;
  SummaryView summaries;
  const int32_t* slots;    // [tokens]
  PlanView plan;           // one query per token
  const int64_t* experts;  // [tokens, top_k], each token's experts in all layers; null: the routers choose
};

// Outputs requested after the last norm.
struct DecoderOutput {
  float* states = nullptr;        // [tokens, hidden]: last hidden states; null: none, and no logits
  const int64_t* rows = nullptr;  // [num_rows]: tokens to compute logits for; null: the first num_rows
  int64_t num_rows = 0;
  float* logits = nullptr;  // [num_rows, 16 head panels]
  int64_t logits_stride = 0;
};

// [tokens, heads, head_dim] of `dtype`.
struct HeadRows {
  void *q, *k, *v;
  DType dtype;
};

// x: [tokens, hidden], the first layer's inputs, overwritten with the last layer's outputs. Throws
// ArgumentError before anything is written.
void run_decoder(const Decoder& decoder, const DecoderStep& step, float* x, const DecoderOutput& output,
                 int num_threads);

// Computes a layer up to its rotated queries and keys.
void before_attention(const Decoder& decoder, int64_t layer, const RotaryTables& rotary, const float* x,
                      int64_t tokens, const HeadRows& heads, int num_threads);

// Computes the rest of the layer. attended: [tokens, q heads, head_dim] of `dtype`. x becomes the layer's
// output.
void after_attention(const Decoder& decoder, int64_t layer, const void* attended, DType dtype, float* x,
                     int64_t tokens, int num_threads);

// Computes the requested outputs from the last layer's x [tokens, hidden].
void decoder_output(const Decoder& decoder, const float* x, int64_t tokens, const DecoderOutput& output,
                    int num_threads);

// Computes logits of the requested rows of states [any, hidden].
void decoder_logits(const Decoder& decoder, const DecoderOutput& output, int num_threads);

// Seconds spent in each part, over all calls so far.
enum class LayerPart { kProducts, kAttention, kAppend, kNormsAndRotary };
std::array<double, 4> decoder_layers_seconds();

}  // namespace tts
