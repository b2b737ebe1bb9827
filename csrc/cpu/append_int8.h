// Quantizes new tokens into int8 pages.
//
// A page has one scale for K and one for V per head: value = byte * scale, byte = round(value / scale) to
// nearest even, scale = (largest |value| of the page) / 127, or 1 if that is 0 (or too small for a normal
// float). A call that writes offset 0 of a page resets the page. Any other call that needs a larger scale
// requantizes the page from the values its bytes stand for; each such growth moves an older value by up to
// half a step of the new scale. A scale never shrinks until the page is reset.
//
// All tokens that a call writes to one page share one growth, so pages written whole are rounded once. A NaN
// or infinity makes the scale NaN, and with it every value of that page and head until the page is reset.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/kv_ops.h"

namespace tts {

struct SlotToken {
  int32_t slot;
  int64_t token;
};

// A call's tokens sorted by slot; only the last token of each slot is kept.
std::vector<SlotToken> tokens_by_slot(const int32_t* slots, int64_t num_tokens);

// append_kv for one head of int8 pages.
void append_int8_head(const KVView& kv, const TokenRows& k, const TokenRows& v,
                      const std::vector<SlotToken>& tokens, int head);

}  // namespace tts
