#include <cstring>

#include "common/error.h"
#include "cpu/kv_ops.h"
#include "cpu/page_summaries.h"
#include "cpu/runtime/parallel.h"

namespace tts {
namespace {

template <class Element>
void copy_layer(const KVView& kv, const int32_t* copies, int64_t num_copies) {
  const size_t head_bytes = sizeof(Element) * kPageSize * static_cast<size_t>(kv.head_dim);
  for (int64_t i = 0; i < num_copies; ++i) {
    const int32_t source = copies[2 * i], destination = copies[2 * i + 1];
    if (source == destination) continue;
    for (int head = 0; head < kv.num_kv_heads; ++head) {
      std::memcpy(k_page<Element>(kv, destination, head), k_page<Element>(kv, source, head), head_bytes);
      std::memcpy(v_page<Element>(kv, destination, head), v_page<Element>(kv, source, head), head_bytes);
    }
    if (kv.dtype == DType::kInt8) {
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
    KVView view = kv;
    if (kv.dtype == DType::kInt8) {
      view.k = static_cast<int8_t*>(kv.k) + layer * k_layer_stride;
      view.v = static_cast<int8_t*>(kv.v) + layer * v_layer_stride;
      view.scales = page_scales(kv, layer * kv.num_pages, 0);  // layers follow each other
      copy_layer<int8_t>(view, copies, num_copies);
    } else if (kv.dtype == DType::kFloat32) {
      view.k = static_cast<float*>(kv.k) + layer * k_layer_stride;
      view.v = static_cast<float*>(kv.v) + layer * v_layer_stride;
      copy_layer<float>(view, copies, num_copies);
    } else {
      view.k = static_cast<uint16_t*>(kv.k) + layer * k_layer_stride;
      view.v = static_cast<uint16_t*>(kv.v) + layer * v_layer_stride;
      copy_layer<uint16_t>(view, copies, num_copies);
    }
    copy_summaries(kv, layer, copies, num_copies, summaries);
  });
}

}  // namespace tts
