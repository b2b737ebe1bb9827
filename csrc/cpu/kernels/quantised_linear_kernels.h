// Kernels that an instruction-set level provides to quantised_linear.cpp. Plain data only, as in
// tree_attention_kernels.h.
#pragma once

#include <cstdint>

#include "cpu/kernels/packed_linear_kernels.h"

namespace tts {

constexpr int kXGroup = 32;         // inputs of a row of x that share a scale
constexpr int kPlaneInputs = 64;    // inputs whose bits share planes
constexpr int kChunkInputs = 256;   // maximum inputs whose weights are unpacked at once
constexpr int kPanelsTogether = 2;  // panels unpacked together per chunk

enum class QuantScales : int {
  kFloat16,   // one per group
  kBFloat16,  // the same
  kTwoLevel,  // an int8 per group times a float per 256 inputs
  kFloat32,   // one per group
};

// A weight is scale * (u - offset), scale * u + min, or scale * (u - offset - zero). u has `bits` bits or,
// with a table, is the table entry that 4 bits index.
struct QuantForm {
  int bits;   // 4, 5, 6 or 8
  int group;  // inputs that share a scale, and a minimum or zero point: 16 or 32
  QuantScales scales;
  bool has_min, has_zeros;
  int offset;
  bool has_table;
  uint8_t table[16];
};

// Layout of a block of 16 outputs. Every part begins at a multiple of 32 bytes.
//
//   kTwoLevel: floats [16] that multiply scales, then [16] that multiply minima
//   scales [groups][16], then minima [groups][16]: of 16 bits, int8 for kTwoLevel, floats for kFloat32
//   zero points [groups][16], in the place of minima: int8
//   for each 64 inputs, planes of bytes [words][16 outputs][4 inputs]:
//     8 bits: [16][16][4]
//     else the low 4 bits [8][16][4]: of word w in bits 0 .. 3 of the w-th, of word w + 8 in its bits 4 .. 7
//     5 bits: and [2][16][4]: the high bit of word w is bit w % 8 of the (w / 8)-th
//     6 bits: and [4][16][4]: the two high bits of word w are at bit 2 (w % 4) of the (w / 4)-th
struct QuantLayout {
  int inputs;  // per block: 64, or 256 for kTwoLevel
  int scales_at, planes_at, plane_bytes;
  int mins_at;  // minima or zero points
  int64_t bytes;
};

// Rows of x times panels, over all inputs.
struct QuantBlock {
  QuantForm form;
  QuantLayout layout;
  const uint8_t* panels;
  int64_t panel_bytes;
  int64_t inputs;     // a multiple of 64
  const uint32_t* x;  // rows as `quantise` writes them
  int64_t x_stride;   // words
  float* sums;        // [rows][16 kPanelsTogether], scratch memory
  const float* bias;  // [16 num_panels]; null: none
  float* out;
  int64_t out_stride;
  LinearEnd end;
};

struct QuantKernels {
  int group_words;  // words per group of 32 inputs, as `quantise` writes it
  // Converts a row of x, zero-padded, for weights with this group size and offset: [padded / 32] groups.
  void (*quantise)(const float* x, int64_t inputs, int64_t padded, int group, int offset, uint32_t* out);
  // num_panels is even for kSwiGLU.
  void (*multiply)(const QuantBlock& block, int rows, int num_panels);
};

}  // namespace tts
