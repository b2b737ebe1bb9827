// Describes a decoder layer as data: its norms, rotations, products and sums. Weights are borrowed, and each
// may be of a different kind.
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
  bool whole;          // one norm over all heads, [heads head_dim]; false: one per head, [head_dim]
};

struct Rotary {
  int table;   // index of the step's table; -1: no rotation
  bool pairs;  // see RotateTask
};

struct Attention {
  float scale;         // factor of the logits
  float soft_cap;      // see TreeAttentionParams; 0: none
  int window;          // 0: none
  const float* sinks;  // [num_q_heads], see TreeAttentionParams; null: none
};

// x += out_norm(o(attention(input_norm(x)))) factor, then x += mlp_out_norm(mlp(mlp_norm(x))) factor. If
// parallel, mlp_norm reads the x from before attention.
struct DecoderLayer {
  Norm input_norm, mlp_norm;  // no weight: no norm
  Norm out_norm, mlp_out_norm;
  HeadNorms head_norms;
  std::vector<Matrix> qkv, gate_up;  // side by side
  Matrix o, down;
  Rotary rotary;
  Attention attention;
  Activation activation;  // of gate_up's outputs, unless gate_up is gated
  bool has_gate;          // gate_up has all gate outputs, then all up outputs
  bool parallel;
  float factor;
  std::optional<Experts> experts;  // replace gate_up and down
};

struct DecoderShape {
  int64_t hidden;  // a multiple of 16
  int num_q_heads, num_kv_heads, head_dim, rotary_dim;
  float eps;  // for all norms
};

// A model's layers, and the norm and head that follow them if `norm` is set.
struct Decoder {
  DecoderShape shape;
  std::vector<DecoderLayer> layers;
  Norm norm;                              // the last norm; no weight: none
  std::optional<Matrix> head;             // hidden -> logits
  float logit_factor = 1, logit_cap = 0;  // see scale_and_cap_rows
};

}  // namespace tts
