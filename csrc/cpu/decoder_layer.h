// What a layer of a decoder computes, as data: which norms, rotations, products and sums there are. Weights
// are borrowed, and each is of a kind of its own.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "cpu/experts.h"
#include "cpu/kernels/row_ops_kernels.h"
#include "cpu/matrix.h"
#include "cpu/row_ops.h"

namespace tts {

struct HeadNorms {
  const float *q, *k;  // weights of RMS norms before the rotation; null: none
  bool whole;          // [heads head_dim], of all heads together; false: [head_dim], of each head
};

struct Rotary {
  int table;   // of the step's; -1: this layer rotates nothing
  bool pairs;  // see RotateTask
};

struct Attention {
  float scale;         // of the logits
  float soft_cap;      // see TreeAttentionParams; 0: none
  int window;          // 0: none
  const float* sinks;  // [num_q_heads], see TreeAttentionParams; null: none
};

// x += out_norm(o(attention(input_norm(x)))) factor, then x += mlp_out_norm(mlp(mlp_norm(x))) factor. Where
// they are parallel the MLP's norm reads the x from before attention.
struct DecoderLayer {
  Norm input_norm, mlp_norm;  // without weight: none
  Norm out_norm, mlp_out_norm;
  HeadNorms head_norms;
  std::vector<Matrix> qkv, gate_up;  // side by side
  Matrix o, down;
  Rotary rotary;
  Attention attention;
  Activation activation;  // of gate_up's outputs, where it is not gated itself
  bool has_gate;          // all outputs of the gate, then all of up
  bool parallel;
  float factor;
  std::optional<Experts> experts;  // in place of gate_up and down
};

struct DecoderShape {
  int64_t hidden;  // a multiple of 16
  int num_q_heads, num_kv_heads, head_dim, rotary_dim;
  float eps;  // of all norms
};

// A model's layers, and what follows them where norm is set.
struct Decoder {
  DecoderShape shape;
  std::vector<DecoderLayer> layers;
  Norm norm;                              // the last one; without weight: none
  std::optional<Matrix> head;             // hidden -> logits
  float logit_factor = 1, logit_cap = 0;  // see scale_and_cap_rows
};

}  // namespace tts
