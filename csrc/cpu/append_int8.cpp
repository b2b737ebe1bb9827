#include "cpu/append_int8.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "cpu/parallel.h"

namespace tts {
namespace {

// The tokens of a call that go into one page, by offset.
struct PageTokens {
  const int64_t* begin;
  const int64_t* end;
  const int32_t* slots;  // of all tokens of the call

  int page() const { return slots[*begin] / kPageSize; }
  bool starts_page() const { return slots[*begin] % kPageSize == 0; }
};

// Tokens by slot, of those with one slot only the last.
std::vector<int64_t> order_tokens(const int32_t* slots, int64_t num_tokens) {
  std::vector<int64_t> order(static_cast<size_t>(num_tokens));
  std::iota(order.begin(), order.end(), int64_t{0});
  std::sort(order.begin(), order.end(),
            [slots](int64_t a, int64_t b) { return slots[a] != slots[b] ? slots[a] < slots[b] : a > b; });
  const auto same_slot = [slots](int64_t a, int64_t b) { return slots[a] == slots[b]; };
  order.erase(std::unique(order.begin(), order.end(), same_slot), order.end());
  return order;
}

std::vector<PageTokens> split_pages(const std::vector<int64_t>& order, const int32_t* slots) {
  std::vector<PageTokens> pages;
  for (const int64_t& token : order) {
    if (pages.empty() || pages.back().page() != slots[token] / kPageSize) {
      pages.push_back({&token, &token, slots});
    }
    pages.back().end = &token + 1;
  }
  return pages;
}

void read_row(const TokenRows& rows, int64_t token, int head, int head_dim, float* out) {
  const int64_t offset = token * rows.token_stride + head * rows.head_stride;
  if (rows.dtype == DType::kFloat32) {
    std::memcpy(out, static_cast<const float*>(rows.data) + offset,
                sizeof(float) * static_cast<size_t>(head_dim));
    return;
  }
  const uint16_t* row = static_cast<const uint16_t*>(rows.data) + offset;
  for (int c = 0; c < head_dim; ++c) {
    const uint32_t bits = uint32_t{row[c]} << 16;
    std::memcpy(&out[c], &bits, sizeof(bits));
  }
}

// Round half to even of |x| <= 128: the sum's low mantissa bits hold the integer.
int8_t round_to_int8(float x) {
  const float sum = x + 12582912.0f;  // 1.5 * 2^23
  uint32_t bits;
  std::memcpy(&bits, &sum, sizeof(bits));
  return static_cast<int8_t>(bits & 0xff);
}

// Largest |x| of a row, or NaN if it has one.
float absolute_max(const float* row, int n) {
  // As integers magnitudes order like floats, infinity and then NaN last.
  uint32_t largest = 0;
  for (int i = 0; i < n; ++i) {
    uint32_t bits;
    std::memcpy(&bits, &row[i], sizeof(bits));
    largest = std::max(largest, bits & 0x7fffffffu);
  }
  float result;
  std::memcpy(&result, &largest, sizeof(result));
  return result;
}

// K or V of one page and head. `index(t, c)` is the place of channel c of token t.
template <class Index>
void append_page(const PageTokens& tokens, const TokenRows& rows, int head, int head_dim, int8_t* page,
                 float* scale, const Index& index) {
  float values[kPageSize * kMaxHeadDim];
  float largest = 0.0f;
  bool finite = true;
  const int64_t count = tokens.end - tokens.begin;
  for (int64_t i = 0; i < count; ++i) {
    float* row = values + i * head_dim;
    read_row(rows, tokens.begin[i], head, head_dim, row);
    const float row_max = absolute_max(row, head_dim);
    finite &= std::isfinite(row_max);
    largest = std::max(largest, row_max);
  }
  const int page_bytes = kPageSize * head_dim;
  float needed = largest / 127.0f;
  if (needed < FLT_MIN) needed = 0.0f;
  float old = tokens.starts_page() ? 0.0f : *scale;
  // A scale of 1 is that of zeros, too, which fit any.
  if (old == 1.0f && std::all_of(page, page + page_bytes, [](int8_t x) { return x == 0; })) old = 0.0f;
  if (!finite || !std::isfinite(old)) {
    *scale = NAN;
    return;
  }
  const float grown = std::max(needed, old), chosen = grown > 0.0f ? grown : 1.0f;
  if (old == 0.0f) {
    std::memset(page, 0, static_cast<size_t>(page_bytes));
  } else if (needed > old) {
    for (int i = 0; i < page_bytes; ++i) page[i] = round_to_int8(static_cast<float>(page[i]) * old / needed);
  }
  *scale = chosen;
  for (int64_t i = 0; i < count; ++i) {
    const int t = tokens.slots[tokens.begin[i]] % kPageSize;
    for (int c = 0; c < head_dim; ++c) page[index(t, c)] = round_to_int8(values[i * head_dim + c] / chosen);
  }
}

}  // namespace

void append_int8(const KVView& kv, const TokenRows& k, const TokenRows& v, const int32_t* slots,
                 int64_t num_tokens, int num_threads) {
  const std::vector<int64_t> order = order_tokens(slots, num_tokens);
  const std::vector<PageTokens> pages = split_pages(order, slots);
  const int d = kv.head_dim;
  const bool small = num_tokens * kv.num_kv_heads * d < (1 << 15);  // as in append_kv
  parallel_for(small ? 1 : num_threads, kv.num_kv_heads, [&](int64_t i) {
    const int head = static_cast<int>(i);
    for (const PageTokens& tokens : pages) {
      float* scales = page_scales(kv, tokens.page(), head);
      append_page(tokens, k, head, d, k_page<int8_t>(kv, tokens.page(), head), scales,
                  [](int t, int c) { return k_index<int8_t>(t, c); });
      append_page(tokens, v, head, d, v_page<int8_t>(kv, tokens.page(), head), scales + 1,
                  [d](int t, int c) { return v_index<int8_t>(t, c, d); });
    }
  });
}

}  // namespace tts
