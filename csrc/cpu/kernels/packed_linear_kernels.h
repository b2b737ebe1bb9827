// Kernels that an instruction-set level provides to packed_linear.cpp. Plain data only, as in
// tree_attention_kernels.h.
#pragma once

#include <cstdint>

namespace tts {

constexpr int kPanelOutputs = 16;  // outputs per panel of weights

// What a kernel does with the sums of a block.
enum class LinearEnd : int {
  kStore,   // out = sum + bias
  kAdd,     // out += sum + bias
  kSwiGLU,  // gate and up panels alternate: out = silu(gate) * up
};

// A block of a product: a range of words of rows of x times the same words of some panels.
struct LinearBlock {
  const uint32_t* x;       // format: LinearKernels::x
  int64_t x_stride;        // words between rows; for tiles, between groups of 16 rows
  const uint32_t* panels;  // panel n begins at panels + n * panel_stride: [words][16]
  int64_t panel_stride;
  int words;
  bool first, last;  // whether these are the row's first and last words
  float* sums;       // [rows, 16 num_panels] partial sums from earlier words, or for later ones, if any
  // Words to prefetch into the L2 cache, laid out as `panels`; null: none. Each block fetches every
  // fetch_stride-th word of a panel, from fetch_first on.
  const uint32_t* ahead;
  int fetch_first, fetch_stride;
  const float* bias;  // [16 num_panels]; null: none
  float* out;         // first row, first output of the block
  int64_t out_stride;
  LinearEnd end;
};

// Format in which kernels read x.
enum class LinearX : int {
  kFloats,  // [rows, inputs]
  kPairs,   // [rows, inputs / 2] pairs of bfloat16
  kTiles,   // pairs in [rows / 16][pairs / 16] tiles of [16][16], zero-padded after the last pair
};

struct LinearKernels {
  // Largest block that `multiply` accepts.
  int max_rows, max_panels;
  LinearX x;
  // num_panels is even for kSwiGLU.
  void (*multiply)(const LinearBlock& block, int rows, int num_panels);
};

}  // namespace tts
