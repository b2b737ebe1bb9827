#include <algorithm>
#include <vector>

#include "common/error.h"
#include "cpu/append_int8.h"
#include "cpu/kv_ops.h"
#include "cpu/page_summaries.h"
#include "cpu/runtime/parallel.h"

namespace tts {
namespace {

// Writes tokens [begin, end) of one head.
template <class Element>
void append_head(const KVView& kv, const TokenRows& k, const TokenRows& v, const int32_t* slots,
                 int64_t begin, int64_t end, int head) {
  for (int64_t i = begin; i < end; ++i) {
    const int page = slots[i] / kPageSize, t = slots[i] % kPageSize;
    const Element* k_row = static_cast<const Element*>(k.data) + i * k.token_stride + head * k.head_stride;
    const Element* v_row = static_cast<const Element*>(v.data) + i * v.token_stride + head * v.head_stride;
    Element* k_out = k_page<Element>(kv, page, head);
    Element* v_out = v_page<Element>(kv, page, head);
    for (int c = 0; c < kv.head_dim; ++c) {
      k_out[k_index<Element>(t, c)] = k_row[c];
      v_out[v_index<Element>(t, c, kv.head_dim)] = v_row[c];
    }
  }
}

// (page, slots up to the last one written), once for each written page.
std::vector<FilledPage> filled_pages(const int32_t* slots, int64_t num_tokens) {
  std::vector<FilledPage> pages;
  for (int64_t i = 0; i < num_tokens; ++i) {
    const int page = slots[i] / kPageSize, filled = slots[i] % kPageSize + 1;
    if (!pages.empty() && pages.back().page == page) {
      pages.back().filled = std::max(pages.back().filled, filled);
    } else {
      pages.push_back({page, filled});
    }
  }
  std::sort(pages.begin(), pages.end(), [](const FilledPage& a, const FilledPage& b) {
    return a.page != b.page ? a.page < b.page : a.filled > b.filled;
  });
  const auto same = [](const FilledPage& a, const FilledPage& b) { return a.page == b.page; };
  pages.erase(std::unique(pages.begin(), pages.end(), same), pages.end());
  return pages;
}

}  // namespace

void check_slots(const KVView& kv, const int32_t* slots, int64_t num_tokens) {
  const int64_t num_slots = int64_t{kv.num_pages} * kPageSize;
  for (int64_t i = 0; i < num_tokens; ++i) {
    require(slots[i] >= 0 && slots[i] < num_slots, "slots[", i, "]: got ", slots[i],
            ", expected 0 <= slot < ", num_slots, " (num_pages * 16)");
  }
}

void append_kv(const KVView& kv, const TokenRows& k, const TokenRows& v, const int32_t* slots,
               int64_t num_tokens, const SummaryView& summaries, int num_threads) {
  check_view(kv);
  check_slots(kv, slots, num_tokens);
  const std::vector<FilledPage> filled =
      summaries.vectors > 0 ? filled_pages(slots, num_tokens) : std::vector<FilledPage>();
  const std::vector<SlotToken> tokens =
      kv.dtype == DType::kInt8 ? tokens_by_slot(slots, num_tokens) : std::vector<SlotToken>();
  // Each channel of a key is its own cache line, loaded from memory: about 30 us for 2^12 elements.
  const int threads = num_tokens * kv.num_kv_heads * kv.head_dim < (1 << 12) ? 1 : num_threads;
  if (kv.dtype == DType::kInt8) {
    parallel_for(threads, kv.num_kv_heads,
                 [&](int64_t head) { append_int8_head(kv, k, v, tokens, static_cast<int>(head)); });
  } else {
    constexpr int64_t kBand = kPageSize;  // tokens; in a prompt, they span one or two pages
    parallel_for(threads, kv.num_kv_heads * ((num_tokens + kBand - 1) / kBand), [&](int64_t unit) {
      const int64_t begin = unit / kv.num_kv_heads * kBand, end = std::min(begin + kBand, num_tokens);
      const auto append = kv.dtype == DType::kFloat32 ? append_head<float> : append_head<uint16_t>;
      append(kv, k, v, slots, begin, end, static_cast<int>(unit % kv.num_kv_heads));
    });
  }
  if (filled.empty()) return;
  parallel_for(threads, kv.num_kv_heads,
               [&](int64_t head) { summarize_pages(kv, static_cast<int>(head), filled, summaries); });
}

}  // namespace tts
