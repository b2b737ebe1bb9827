#include "cpu/kv_layout.h"

#include "common/error.h"

namespace tts {
namespace {

// Null stays null.
template <class T>
T* moved(T* data, int64_t bytes) {
  return data == nullptr ? nullptr : reinterpret_cast<T*>(reinterpret_cast<char*>(data) + bytes);
}

}  // namespace

int64_t element_bytes(DType dtype) { return dtype == DType::kInt8 ? 1 : dtype == DType::kBFloat16 ? 2 : 4; }

DType summary_dtype(DType page_dtype) {
  return page_dtype == DType::kFloat32 ? DType::kFloat32 : DType::kBFloat16;
}

KVView layer_of(const KVView& first, int64_t layer, int64_t k_layer_stride, int64_t v_layer_stride) {
  KVView kv = first;
  kv.k = moved(first.k, layer * k_layer_stride * element_bytes(first.dtype));
  kv.v = moved(first.v, layer * v_layer_stride * element_bytes(first.dtype));
  const int64_t scales = int64_t{first.num_pages} * first.num_kv_heads * 2;
  kv.scales = moved(first.scales, layer * scales * int64_t{sizeof(float)});
  return kv;
}

SummaryView layer_of(const SummaryView& first, int64_t layer, const KVView& kv) {
  const int64_t elements =
      int64_t{kv.num_pages} * kv.num_kv_heads * first.vectors * summary_channels(first.vectors, kv.head_dim);
  return {moved(first.data, layer * elements * element_bytes(summary_dtype(kv.dtype))), first.vectors};
}

void check_view(const KVView& kv) {
  require(kv.num_pages >= 0 && kv.num_kv_heads >= 1, "k_pages: got ", kv.num_pages, " pages and ",
          kv.num_kv_heads, " heads, expected at least one head");
  require(kv.head_dim >= kMinHeadDim && kv.head_dim <= kMaxHeadDim && kv.head_dim % kHeadDimStep == 0,
          "head_dim: got ", kv.head_dim, ", expected a multiple of ", kHeadDimStep, " from ", kMinHeadDim,
          " to ", kMaxHeadDim);
  // bfloat16 pairs are read as words.
  const bool aligned = kv.dtype != DType::kBFloat16 ||
                       ((reinterpret_cast<uintptr_t>(kv.k) | reinterpret_cast<uintptr_t>(kv.v)) % 4 == 0 &&
                        (kv.k_page_stride | kv.k_head_stride | kv.v_page_stride | kv.v_head_stride) % 2 == 0);
  require(aligned, "k_pages, v_pages: bfloat16 pages must begin at multiples of 4 bytes");
  require((kv.dtype == DType::kInt8) == (kv.scales != nullptr) || kv.num_pages == 0,
          "scales: expected for int8 pages, and for no others");
}

}  // namespace tts
