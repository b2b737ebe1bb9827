// Quantization of new tokens into int8 pages.
//
// A page has a scale for K and one for V of each head: value = byte * scale, byte = round(value / scale) to
// nearest even, scale = (largest |value| of the page) / 127, or 1 where that is 0 (or too small for a normal
// float). A call that names offset 0 of a page starts it anew. One that does not and needs a larger scale
// quantizes what the page holds again, from the values that its bytes stand for: each such growth moves an
// older value by up to half a step of the new scale. A scale never shrinks before the page starts anew.
//
// All tokens that a call puts into one page share one growth, so pages written whole are rounded once. A NaN
// or an infinity makes the scale NaN, and with it every value of that page and head until it starts anew.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/kv_ops.h"

namespace tts {

struct SlotToken {
  int32_t slot;
  int64_t token;
};

// The tokens of a call by slot, of those with one slot only the last.
std::vector<SlotToken> tokens_by_slot(const int32_t* slots, int64_t num_tokens);

// append_kv for one head of int8 pages.
void append_int8_head(const KVView& kv, const TokenRows& k, const TokenRows& v,
                      const std::vector<SlotToken>& tokens, int head);

}  // namespace tts
