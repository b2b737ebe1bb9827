#include "cpu/append_int8.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>

#include "cpu/runtime/bfloat16.h"

namespace tts {
namespace {

void read_row(const TokenRows& rows, int64_t token, int head, int head_dim, float* out) {
  const int64_t offset = token * rows.token_stride + head * rows.head_stride;
  if (rows.dtype == DType::kFloat32) {
    std::memcpy(out, static_cast<const float*>(rows.data) + offset,
                sizeof(float) * static_cast<size_t>(head_dim));
    return;
  }
  const uint16_t* row = static_cast<const uint16_t*>(rows.data) + offset;
  for (int c = 0; c < head_dim; ++c) out[c] = widen_bfloat16(row[c]);
}

// Rounds |x| <= 128, half to even: the sum's low mantissa bits hold the integer.
int8_t round_to_int8(float x) {
  const float sum = x + 12582912.0f;  // 1.5 * 2^23
  uint32_t bits;
  std::memcpy(&bits, &sum, sizeof(bits));
  return static_cast<int8_t>(bits & 0xff);
}

// Largest |x| of a row, or NaN if it has one.
float absolute_max(const float* row, int n) {
  // Read as integers, magnitudes order like floats, with infinity and then NaN last.
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

// Writes K or V of one page and head. `index(t, c)` is the offset of channel c of token t.
template <class Index>
void append_page(const SlotToken* begin, const SlotToken* end, const TokenRows& rows, int head, int head_dim,
                 int8_t* page, float* scale, const Index& index) {
  float values[kPageSize * kMaxHeadDim];
  float largest = 0.0f;
  bool finite = true;
  for (const SlotToken* i = begin; i < end; ++i) {
    float* row = values + (i - begin) * head_dim;
    read_row(rows, i->token, head, head_dim, row);
    const float row_max = absolute_max(row, head_dim);
    finite &= std::isfinite(row_max);
    largest = std::max(largest, row_max);
  }
  const int page_bytes = kPageSize * head_dim;
  const float needed = largest / 127.0f >= FLT_MIN ? largest / 127.0f : 0.0f;
  float old = begin->slot % kPageSize == 0 ? 0.0f : *scale;
  // A scale of 1 may also mean an all-zero page, which fits any scale.
  if (old == 1.0f && std::all_of(page, page + page_bytes, [](int8_t x) { return x == 0; })) old = 0.0f;
  if (!finite || !std::isfinite(old)) {
    *scale = NAN;
    return;
  }
  if (old == 0.0f) {
    std::memset(page, 0, static_cast<size_t>(page_bytes));
  } else if (needed > old) {
    for (int i = 0; i < page_bytes; ++i) page[i] = round_to_int8(static_cast<float>(page[i]) * old / needed);
  }
  const float grown = std::max(needed, old), chosen = grown > 0.0f ? grown : 1.0f;
  *scale = chosen;
  for (const SlotToken* i = begin; i < end; ++i) {
    const float* row = values + (i - begin) * head_dim;
    for (int c = 0; c < head_dim; ++c) page[index(i->slot % kPageSize, c)] = round_to_int8(row[c] / chosen);
  }
}

}  // namespace

std::vector<SlotToken> tokens_by_slot(const int32_t* slots, int64_t num_tokens) {
  std::vector<SlotToken> tokens;
  for (int64_t i = 0; i < num_tokens; ++i) tokens.push_back({slots[i], i});
  std::sort(tokens.begin(), tokens.end(), [](const SlotToken& a, const SlotToken& b) {
    return a.slot != b.slot ? a.slot < b.slot : a.token > b.token;
  });
  const auto same = [](const SlotToken& a, const SlotToken& b) { return a.slot == b.slot; };
  tokens.erase(std::unique(tokens.begin(), tokens.end(), same), tokens.end());
  return tokens;
}

void append_int8_head(const KVView& kv, const TokenRows& k, const TokenRows& v,
                      const std::vector<SlotToken>& tokens, int head) {
  const int d = kv.head_dim;
  const SlotToken* const last = tokens.data() + tokens.size();
  for (const SlotToken *begin = tokens.data(), *end; begin < last; begin = end) {
    const int page = begin->slot / kPageSize;
    for (end = begin + 1; end < last && end->slot / kPageSize == page;) ++end;
    float* scales = page_scales(kv, page, head);
    append_page(begin, end, k, head, d, k_page<int8_t>(kv, page, head), scales,
                [](int t, int c) { return k_index<int8_t>(t, c); });
    append_page(begin, end, v, head, d, v_page<int8_t>(kv, page, head), scales + 1,
                [d](int t, int c) { return v_index<int8_t>(t, c, d); });
  }
}

}  // namespace tts
