// The packed page layout of the CPU KV pool, and the view of one layer that kernels read.
//
// A page holds kPageSize tokens. For one head of one page, with token t of the page and channel c:
//   float32   K [head_dim][16 tokens]               k[c * 16 + t]
//             V [16 tokens][head_dim]               v[t * head_dim + c]
//   bfloat16  K [head_dim / 2][16 tokens][2]        k[(c / 2) * 32 + t * 2 + c % 2]
//             V [8 token pairs][head_dim][2]        v[(t / 2) * 2 * head_dim + c * 2 + t % 2]
//   int8      as float32, a byte an element; a value is the byte times the page's scale
// So one 512-bit register holds one channel (or channel pair) of all 16 tokens of a K page, and a V page has
// a row of channels per token (or token pair). Neither product needs a sum across lanes.
//
// The helpers are `static`: translation units built for one instruction set include this header, and the
// linker could otherwise keep such a unit's copy for all.
#pragma once

#include <cstdint>

namespace tts {

enum class DType { kFloat32, kBFloat16, kInt8 };

constexpr int kPageSize = 16;
constexpr int kMinHeadDim = 32;
constexpr int kMaxHeadDim = 256;
constexpr int kHeadDimStep = 16;

// One layer of a KV pool. Strides are in elements; the inner dimensions of a head are contiguous.
struct KVView {
  void* k;  // [num_pages, num_kv_heads, packed K page]
  void* v;  // [num_pages, num_kv_heads, packed V page]
  int64_t k_page_stride, k_head_stride;
  int64_t v_page_stride, v_head_stride;
  int num_pages, num_kv_heads, head_dim;
  DType dtype;
  float* scales;  // [num_pages, num_kv_heads, 2] of K and V, contiguous; null unless int8
};

// Summaries of the keys of each page and head, used to choose pages: their mean; the minimum and maximum of
// each channel; or the means of the page's quarters, 4 tokens each, over its slow channels. float32 beside
// float32 pages, else bfloat16.
struct SummaryView {
  void* data;   // [num_pages, num_kv_heads, vectors, channels], contiguous
  int vectors;  // 1: mean; 2: minimum, maximum; kQuarters: quarters; 0: no summaries
};

constexpr int kQuarters = 4;
constexpr int kQuarterTokens = kPageSize / kQuarters;

// Channels per vector of a summary.
static inline int summary_channels(int vectors, int head_dim) {
  return vectors == kQuarters ? head_dim / 2 : head_dim;
}

// The i-th of the head_dim / 2 slow channels. Rotary embeddings rotate the pairs (c, c + head_dim / 2), later
// pairs by smaller angles per token. In the later half of the pairs, the mean of a few tokens is close to
// each of them.
static inline int slow_channel(int i, int head_dim) {
  return i < head_dim / 4 ? head_dim / 4 + i : head_dim / 2 + i;
}

int64_t element_bytes(DType dtype);
DType summary_dtype(DType page_dtype);  // float32 beside float32 pages, else bfloat16

// Layer `layer` of a pool whose layer 0 is `first`; layer strides are in elements. Scales and summaries of
// the layers are contiguous.
KVView layer_of(const KVView& first, int64_t layer, int64_t k_layer_stride, int64_t v_layer_stride);
SummaryView layer_of(const SummaryView& first, int64_t layer, const KVView& kv);

// Throws ArgumentError unless the kernels support the view's sizes.
void check_view(const KVView& kv);

// Element is float, uint16_t for the bits of a bfloat16, or int8_t.
template <class Element>
static inline int64_t k_index(int t, int c) {
  if constexpr (sizeof(Element) == 2) return (c / 2) * (2 * kPageSize) + t * 2 + c % 2;
  return c * kPageSize + t;
}

template <class Element>
static inline int64_t v_index(int t, int c, int head_dim) {
  if constexpr (sizeof(Element) == 2) return int64_t{t / 2} * 2 * head_dim + c * 2 + t % 2;
  return int64_t{t} * head_dim + c;
}

template <class Element>
static inline Element* k_page(const KVView& kv, int64_t page, int head) {
  return static_cast<Element*>(kv.k) + page * kv.k_page_stride + head * kv.k_head_stride;
}

static inline float* page_scales(const KVView& kv, int64_t page, int head) {
  return kv.scales + (page * kv.num_kv_heads + head) * 2;
}

template <class Element>
static inline Element* v_page(const KVView& kv, int64_t page, int head) {
  return static_cast<Element*>(kv.v) + page * kv.v_page_stride + head * kv.v_head_stride;
}

}  // namespace tts
