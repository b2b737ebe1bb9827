// Address and size checks of the launches.
#pragma once

#include <cstdint>

#include "cuda/kv_ops.h"

namespace tts::cuda {

inline constexpr int64_t kMaxGrid = int64_t{1} << 31;  // blocks along x

inline bool aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

inline bool aligned(const PageTensor& pages, int32_t element_bytes) {
  const int64_t elements = 16 / element_bytes;
  return aligned(pages.data) && pages.page_stride % elements == 0 && pages.head_stride % elements == 0 &&
         pages.token_stride % elements == 0;
}

inline bool aligned(const Rows& rows, int32_t element_bytes) {
  const int64_t elements = 16 / element_bytes;
  return aligned(rows.data) && rows.token_stride % elements == 0 && rows.head_stride % elements == 0;
}

// Whether all rows of K and V begin and end at multiples of 16 bytes.
inline bool aligned(const Pages& pages) {
  return aligned(pages.k, pages.element_bytes) && aligned(pages.v, pages.element_bytes) &&
         pages.head_dim * pages.element_bytes % 16 == 0;
}

}  // namespace tts::cuda
