// The layers of a model over the tokens of one step, in one call. Attention of another kind goes between
// `before_attention` and `after_attention`, which give the same bits.
#pragma once

#include <array>
#include <cstdint>

#include "cpu/decoder_layer.h"
#include "cpu/kv_layout.h"
#include "cpu/tree_attention.h"

namespace tts {

// The rotations of the tokens' positions, table after table.
struct RotaryTables {
  const float *cos, *sin;  // [num_tables, tokens, rotary_dim]
  int num_tables;
};

// What a step's layers share. Pages, their scales and summaries are those of layer 0; the next layers' follow
// at these strides, in elements.
struct DecoderStep {
  RotaryTables rotary;
  DType row_dtype;  // of queries, keys and values
  KVView kv;
  int64_t k_layer_stride, v_layer_stride;
  SummaryView summaries;
  const int32_t* slots;    // [tokens]
  PlanView plan;           // a query for each token
  const int64_t* experts;  // [tokens, top_k], where tokens go in all layers; null: where routers send them
};

// What is wanted of a step behind the last norm.
struct DecoderOutput {
  float* states = nullptr;        // [tokens, hidden]: last hidden states; null: none, and no logits
  const int64_t* rows = nullptr;  // [num_rows]: tokens whose logits are wanted; null: the first num_rows
  int64_t num_rows = 0;
  float* logits = nullptr;  // [num_rows, 16 head panels]
  int64_t logits_stride = 0;
};

// [tokens, heads, head_dim] of `dtype`.
struct HeadRows {
  void *q, *k, *v;
  DType dtype;
};

// x: [tokens, hidden], the inputs of the first layer, becomes the outputs of the last one. Throws
// ArgumentError before anything is written.
void run_decoder(const Decoder& decoder, const DecoderStep& step, float* x, const DecoderOutput& output,
                 int num_threads);

// A layer up to its rotated queries and keys.
void before_attention(const Decoder& decoder, int64_t layer, const RotaryTables& rotary, const float* x,
                      int64_t tokens, const HeadRows& heads, int num_threads);

// The rest of it, with attended: [tokens, q heads, head_dim] of `dtype`. x becomes the layer's output.
void after_attention(const Decoder& decoder, int64_t layer, const void* attended, DType dtype, float* x,
                     int64_t tokens, int num_threads);

// What follows the layers, of x [tokens, hidden].
void decoder_output(const Decoder& decoder, const float* x, int64_t tokens, const DecoderOutput& output,
                    int num_threads);

// Logits of the wanted rows of states [any, hidden].
void decoder_logits(const Decoder& decoder, const DecoderOutput& output, int num_threads);

// Where the time of all calls so far went, in seconds.
enum class LayerPart { kProducts, kAttention, kAppend, kNormsAndRotary };
std::array<double, 4> decoder_layers_seconds();

}  // namespace tts
