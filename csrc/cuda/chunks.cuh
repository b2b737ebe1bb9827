// Views tensors as chunks of 16 bytes if alignment allows it, else as elements.
#pragma once

#include <cstdint>

#include "cuda/kv_ops.h"
#include "cuda/launch.cuh"

namespace tts::cuda {

template <class Chunk>
struct ChunkTensor {
  Chunk* data;
  int64_t page_stride, head_stride, token_stride;  // in chunks

  __device__ Chunk* at(int64_t page, int64_t head, int64_t token, int64_t chunk) const {
    return data + page * page_stride + head * head_stride + token * token_stride + chunk;
  }
};

template <class Chunk>
ChunkTensor<Chunk> to_chunks(const PageTensor& pages, int32_t element_bytes) {
  const int64_t elements = static_cast<int64_t>(sizeof(Chunk)) / element_bytes;
  return {static_cast<Chunk*>(pages.data), pages.page_stride / elements, pages.head_stride / elements,
          pages.token_stride / elements};
}

// Views rows of tokens: tokens stand in for pages.
template <class Chunk>
ChunkTensor<Chunk> to_chunks(const Rows& rows, int32_t element_bytes) {
  const int64_t elements = static_cast<int64_t>(sizeof(Chunk)) / element_bytes;
  return {static_cast<Chunk*>(rows.data), rows.token_stride / elements, rows.head_stride / elements, 0};
}

}  // namespace tts::cuda
