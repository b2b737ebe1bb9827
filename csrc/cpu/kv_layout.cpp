#include "cpu/kv_layout.h"

#include "common/error.h"

namespace tts {

void check_view(const KVView& kv) {
  require(kv.num_pages >= 0 && kv.num_kv_heads >= 1, "k_pages: got ", kv.num_pages, " pages and ",
          kv.num_kv_heads, " heads, expected at least one head");
  require(kv.head_dim >= kMinHeadDim && kv.head_dim <= kMaxHeadDim && kv.head_dim % kHeadDimStep == 0,
          "head_dim: got ", kv.head_dim, ", expected a multiple of ", kHeadDimStep, " from ", kMinHeadDim,
          " to ", kMaxHeadDim);
  // Pairs of bfloat16 are read as words.
  const bool aligned = kv.dtype != DType::kBFloat16 ||
                       ((reinterpret_cast<uintptr_t>(kv.k) | reinterpret_cast<uintptr_t>(kv.v)) % 4 == 0 &&
                        (kv.k_page_stride | kv.k_head_stride | kv.v_page_stride | kv.v_head_stride) % 2 == 0);
  require(aligned, "k_pages, v_pages: bfloat16 pages must begin at multiples of 4 bytes");
  require((kv.dtype == DType::kInt8) == (kv.scales != nullptr) || kv.num_pages == 0,
          "scales: expected for int8 pages, and for no others");
}

}  // namespace tts
