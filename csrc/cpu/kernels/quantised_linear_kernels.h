// What one instruction-set level provides to quantised_linear.cpp. Plain data only, as in
// tree_attention_kernels.h.
#pragma once

#include <cstdint>

#include "cpu/kernels/packed_linear_kernels.h"

namespace tts {

constexpr int kXGroup = 32;         // inputs of a row of x that share a scale
constexpr int kPlaneInputs = 64;    // inputs whose bits lie in planes together
constexpr int kChunkInputs = 256;   // most inputs whose weights are unpacked at once
constexpr int kPanelsTogether = 2;  // panels of such a chunk

enum class QuantScales : int {
  kFloat16,   // one for each group
  kBFloat16,  // the same
  kTwoLevel,  // an int8 for each group times a float for all groups of 256 inputs
  kFloat32,   // one for each group
};

// A weight is scale * (u - offset), or scale * u + min, or scale * (u - offset - zero). u has `bits` bits or,
// where there is a table, is the entry that 4 bits lead to.
struct QuantForm {
  int bits;   // 4, 5, 6 or 8
  int group;  // inputs that share a scale, and a minimum or zero point: 16 or 32
  QuantScales scales;
  bool has_min, has_zeros;
  int offset;
  bool has_table;
  uint8_t table[16];
};

// Where things lie in a block of 16 outputs: all of them begin at multiples of 32 bytes.
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
  int inputs;  // of a block: 64, or 256 for kTwoLevel
  int scales_at, planes_at, plane_bytes;
  int mins_at;  // of minima, or zero points
  int64_t bytes;
};

// Rows of x times panels, all inputs of them.
struct QuantBlock {
  QuantForm form;
  QuantLayout layout;
  const uint8_t* panels;
  int64_t panel_bytes;
  int64_t inputs;     // a multiple of 64
  const uint32_t* x;  // rows as `quantise` leaves them
  int64_t x_stride;   // words
  float* sums;        // [rows][16 kPanelsTogether], of any content
  const float* bias;  // [16 num_panels]; null: none
  float* out;
  int64_t out_stride;
  LinearEnd end;
};

struct QuantKernels {
  int group_words;  // of a row's group of 32 inputs, as `quantise` leaves it
  // A row of x, zeros behind it, for weights of such groups and offset: [padded / 32] groups.
  void (*quantise)(const float* x, int64_t inputs, int64_t padded, int group, int offset, uint32_t* out);
  // num_panels is even for kSwiGLU.
  void (*multiply)(const QuantBlock& block, int rows, int num_panels);
};

}  // namespace tts
