// What one instruction-set level provides to packed_linear.cpp. Plain data only, as in
// tree_attention_kernels.h.
#pragma once

#include <cstdint>

namespace tts {

constexpr int kPanelOutputs = 16;  // outputs of a panel of weights

// What becomes of the sums of a block.
enum class LinearEnd : int {
  kStore,   // out = sum + bias
  kAdd,     // out += sum + bias
  kSwiGLU,  // panels of gate and up take turns: out = silu(gate) * up
};

// A block of a product: words of rows of x times the same words of some panels.
struct LinearBlock {
  const uint32_t* x;       // as kernels.x says
  int64_t x_stride;        // words from row to row; in tiles, from 16 rows to the next
  const uint32_t* panels;  // panel n begins at panels + n * panel_stride: [words][16]
  int64_t panel_stride;
  int words;
  bool first, last;  // words of the row
  float* sums;  // [rows, 16 num_panels] left by the words before, or for those after; where there are any
  // Panels' words to fetch into the L2 cache meanwhile, laid out as `panels`; null: none. Of a panel's words
  // every fetch_stride-th from fetch_first on.
  const uint32_t* ahead;
  int fetch_first, fetch_stride;
  const float* bias;  // [16 num_panels]; null: none
  float* out;         // first row, first output of the block
  int64_t out_stride;
  LinearEnd end;
};

// How kernels read x.
enum class LinearX : int {
  kFloats,  // [rows, inputs]
  kPairs,   // [rows, inputs / 2] pairs of bfloat16
  kTiles,   // pairs in [rows / 16][pairs / 16] tiles of [16][16], zeros behind the last pair
};

struct LinearKernels {
  // Largest block that `multiply` takes.
  int max_rows, max_panels;
  LinearX x;
  // num_panels is even for kSwiGLU.
  void (*multiply)(const LinearBlock& block, int rows, int num_panels);
};

}  // namespace tts
