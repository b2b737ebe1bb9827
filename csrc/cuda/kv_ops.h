// Storage of plain pages on a GPU. Includes no CUDA header: a stream is a cudaStream_t passed as void*.
//
// Launches do not wait, so they cannot reject indices that only the device knows: slots and pages outside the
// pool are skipped. They throw CudaError if a launch fails, and ArgumentError for a bad argument.
#pragma once

#include <cstdint>

namespace tts::cuda {

// K or V: a tensor [num_pages, num_kv_heads, page_size, head_dim], channels contiguous.
struct PageTensor {
  void* data;
  int64_t page_stride;  // in elements, like all strides here
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

// Copies page copies[i][0] to copies[i][1] in each of `num_layers` layers. Copies run concurrently:
// destinations are distinct and none is a source. copies: int32 [num_copies, 2]; `pages` is the first layer.
void copy_pages(const Pages& pages, int64_t num_layers, int64_t k_layer_stride, int64_t v_layer_stride,
                const int32_t* copies, int64_t num_copies, void* stream);

}  // namespace tts::cuda
