// The layers of a Llama-like model over the tokens of one step, in one call: what packed_linear, rms_norm,
// rotate_qkv, append_kv and tree_attention do one after the other, to the bit.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "cpu/kv_layout.h"
#include "cpu/tree_attention.h"

namespace tts {

struct PackedMatrix {
  const void* panels;  // see packed_linear.h
  int64_t num_panels;
  const float* bias;  // [16 num_panels]; null: none
};

struct DecoderLayer {
  const float *input_norm, *mlp_norm;  // [hidden]
  const float *q_norm, *k_norm;        // [head_dim]; null: none
  PackedMatrix qkv, o;
  PackedMatrix gate_up, down;  // gate_up: panels of gate and up take turns
  float scale;                 // of the logits
  int window;                  // 0: none
};

struct DecoderShape {
  int64_t hidden;  // a multiple of 16
  int num_q_heads, num_kv_heads, head_dim;
  DType weight_dtype;
  float eps;  // of all norms
};

// What a step's layers share. Pages, their scales and summaries are those of layer 0; the next layers' follow
// at these strides, in elements.
struct DecoderStep {
  const float *cos, *sin;  // [tokens, head_dim]
  DType row_dtype;         // of queries, keys and values
  KVView kv;
  int64_t k_layer_stride, v_layer_stride;
  SummaryView summaries;
  const int32_t* slots;  // [tokens]
  PlanView plan;         // a query for each token
};

// A model's layers, and what follows them where norm is set.
struct Decoder {
  DecoderShape shape;
  std::vector<DecoderLayer> layers;
  const float* norm = nullptr;       // [hidden], weight of the last norm; null: none
  std::optional<PackedMatrix> head;  // hidden -> logits
};

// What is wanted of a step behind the last norm.
struct DecoderOutput {
  float* states = nullptr;        // [tokens, hidden]: last hidden states; null: none, and no logits
  const int64_t* rows = nullptr;  // [num_rows]: tokens whose logits are wanted; null: the first num_rows
  int64_t num_rows = 0;
  float* logits = nullptr;  // [num_rows, 16 head panels]
  int64_t logits_stride = 0;
};

// x: [tokens, hidden], the inputs of the first layer, becomes the outputs of the last one. Throws
// ArgumentError before anything is written.
void run_decoder(const Decoder& decoder, const DecoderStep& step, float* x, const DecoderOutput& output,
                 int num_threads);

// Where the time of all calls so far went, in seconds.
enum class LayerPart { kProducts, kAttention, kAppend, kNormsAndRotary };
std::array<double, 4> decoder_layers_seconds();

}  // namespace tts
