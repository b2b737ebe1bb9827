// Storage of plain pages on a GPU. No CUDA header: a stream is the void* that a cudaStream_t is.
//
// The launches do not wait, so an index that only the device knows cannot be refused: slots and pages outside
// the pool are skipped. All of them throw CudaError if a launch fails, and ArgumentError for a bad argument.
#pragma once

#include <cstdint>

namespace tts::cuda {

// One of two equal tensors [num_pages, num_kv_heads, page_size, head_dim], channels contiguous.
struct PageTensor {
  void* data;
  int64_t page_stride;  // in elements, as all strides here
  int64_t head_stride;
  int64_t token_stride;
};

struct Pages {
  PageTensor k;
  PageTensor v;
  int64_t num_pages;
  int32_t num_kv_heads;
  int32_t page_size;
  int32_t head_dim;
  int32_t element_bytes;  // 2 or 4
};

// [num_tokens, num_heads, head_dim], channels contiguous.
struct Rows {
  const void* data;
  int64_t token_stride;
  int64_t head_stride;
};

// Writes token t's K and V into slot slots[t] = page * page_size + offset. slots: int32 [num_tokens].
void append_kv(const Pages& pages, const Rows& k, const Rows& v, const int32_t* slots, int64_t num_tokens,
               void* stream);

// Copies pages copies[i][0] -> copies[i][1] in each of `num_layers` layers, all at once: destinations are
// distinct and none is a source. copies: int32 [num_copies, 2]; `pages` is the first layer.
void copy_pages(const Pages& pages, int64_t num_layers, int64_t k_layer_stride, int64_t v_layer_stride,
                const int32_t* copies, int64_t num_copies, void* stream);

}  // namespace tts::cuda
