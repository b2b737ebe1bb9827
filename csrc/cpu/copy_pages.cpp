#include <cstring>

#include "common/error.h"
#include "cpu/kv_ops.h"
#include "cpu/page_summaries.h"
#include "cpu/runtime/parallel.h"

namespace tts {
namespace {

void copy_layer(const KVView& kv, const int32_t* copies, int64_t num_copies) {
  const int64_t element = element_bytes(kv.dtype), k_head = kv.k_head_stride * element,
                v_head = kv.v_head_stride * element;
  const size_t head_bytes = static_cast<size_t>(element) * kPageSize * static_cast<size_t>(kv.head_dim);
  const auto k = [&](int64_t page) { return static_cast<char*>(kv.k) + page * kv.k_page_stride * element; };
  const auto v = [&](int64_t page) { return static_cast<char*>(kv.v) + page * kv.v_page_stride * element; };
  for (int64_t i = 0; i < num_copies; ++i) {
    const int32_t source = copies[2 * i], destination = copies[2 * i + 1];
    if (source == destination) continue;
    for (int64_t head = 0; head < kv.num_kv_heads; ++head) {
      std::memcpy(k(destination) + head * k_head, k(source) + head * k_head, head_bytes);
      std::memcpy(v(destination) + head * v_head, v(source) + head * v_head, head_bytes);
    }
    if (kv.scales != nullptr) {
      std::memcpy(page_scales(kv, destination, 0), page_scales(kv, source, 0),
                  sizeof(float) * 2 * static_cast<size_t>(kv.num_kv_heads));
    }
  }
}

}  // namespace

void copy_pages(const KVView& kv, int num_layers, int64_t k_layer_stride, int64_t v_layer_stride,
                const int32_t* copies, int64_t num_copies, const SummaryView& summaries, int num_threads) {
  check_view(kv);
  for (int64_t i = 0; i < 2 * num_copies; ++i) {
    require(copies[i] >= 0 && copies[i] < kv.num_pages, "copies[", i / 2, ", ", i % 2, "]: got page ",
            copies[i], ", expected 0 <= page < ", kv.num_pages);
  }
  parallel_for(num_copies > 0 ? num_threads : 1, num_layers, [&](int64_t layer) {
    copy_layer(layer_of(kv, layer, k_layer_stride, v_layer_stride), copies, num_copies);
    copy_summaries(layer_of(summaries, layer, kv), kv, copies, num_copies);
  });
}

}  // namespace tts
