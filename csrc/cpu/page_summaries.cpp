#include "cpu/page_summaries.h"

#include <algorithm>
#include <cstring>

#include "cpu/runtime/bfloat16.h"

namespace tts {
namespace {

inline float to_float(float x) { return x; }
inline float to_float(uint16_t bits) { return widen_bfloat16(bits); }
inline float to_float(int8_t x) { return static_cast<float>(x); }
inline void store(float& to, float x) { to = x; }
inline void store(uint16_t& to, float x) { to = round_to_bfloat16(x); }

// Means of the slow channels of each quarter; a quarter without keys repeats the previous one. `scale`: scale
// of int8 pages, else 1.
template <class Element, class Out>
void summarize_quarters(const KVView& kv, int head, const FilledPage& page, float scale, Out* out) {
  const Element* k = k_page<Element>(kv, page.page, head);
  const int channels = summary_channels(kQuarters, kv.head_dim);
  for (int quarter = 0; quarter < kQuarters; ++quarter, out += channels) {
    const int begin = quarter * kQuarterTokens, end = std::min(begin + kQuarterTokens, page.filled);
    if (begin >= end) {
      std::copy_n(out - channels, channels, out);
      continue;
    }
    for (int i = 0; i < channels; ++i) {
      const int c = slow_channel(i, kv.head_dim);
      float sum = 0.0f;
      for (int t = begin; t < end; ++t) sum += to_float(k[k_index<Element>(t, c)]) * scale;
      store(out[i], sum / static_cast<float>(end - begin));
    }
  }
}

// scale: scale of int8 pages, else 1.
template <class Element, class Out>
void summarize(const KVView& kv, int head, const FilledPage& page, float scale, int vectors, Out* out) {
  if (vectors == kQuarters) return summarize_quarters<Element>(kv, head, page, scale, out);
  const Element* k = k_page<Element>(kv, page.page, head);
  for (int c = 0; c < kv.head_dim; ++c) {
    const float first = to_float(k[k_index<Element>(0, c)]) * scale;
    float sum = first, low = first, high = first;
    for (int t = 1; t < page.filled; ++t) {
      const float x = to_float(k[k_index<Element>(t, c)]) * scale;
      sum += x;
      low = std::min(low, x);
      high = std::max(high, x);
    }
    if (vectors == 1) {
      store(out[c], sum / static_cast<float>(page.filled));
    } else {
      store(out[c], low);
      store(out[kv.head_dim + c], high);
    }
  }
}

}  // namespace

void summarize_pages(const KVView& kv, int head, const std::vector<FilledPage>& pages,
                     const SummaryView& summaries) {
  for (const FilledPage& page : pages) {
    const int64_t index = (int64_t{page.page} * kv.num_kv_heads + head) * summaries.vectors *
                          summary_channels(summaries.vectors, kv.head_dim);
    if (kv.dtype == DType::kFloat32) {
      summarize<float>(kv, head, page, 1.0f, summaries.vectors, static_cast<float*>(summaries.data) + index);
      continue;
    }
    uint16_t* out = static_cast<uint16_t*>(summaries.data) + index;
    if (kv.dtype == DType::kInt8) {
      summarize<int8_t>(kv, head, page, page_scales(kv, page.page, head)[0], summaries.vectors, out);
    } else {
      summarize<uint16_t>(kv, head, page, 1.0f, summaries.vectors, out);
    }
  }
}

void copy_summaries(const SummaryView& summaries, const KVView& kv, const int32_t* copies,
                    int64_t num_copies) {
  const size_t page_bytes =
      static_cast<size_t>(element_bytes(summary_dtype(kv.dtype)) * kv.num_kv_heads * summaries.vectors *
                          summary_channels(summaries.vectors, kv.head_dim));
  if (page_bytes == 0) return;
  char* pages = static_cast<char*>(summaries.data);
  for (int64_t i = 0; i < num_copies; ++i) {
    const int32_t source = copies[2 * i], destination = copies[2 * i + 1];
    if (source == destination) continue;
    std::memcpy(pages + static_cast<size_t>(destination) * page_bytes,
                pages + static_cast<size_t>(source) * page_bytes, page_bytes);
  }
}

}  // namespace tts
