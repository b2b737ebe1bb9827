// Conversions between float and the bits of a bfloat16. `static`, as in kv_layout.h.
#pragma once

#include <cstdint>
#include <cstring>

namespace tts {

static inline float widen_bfloat16(uint16_t bits) {
  const uint32_t word = uint32_t{bits} << 16;
  float x;
  std::memcpy(&x, &word, sizeof(x));
  return x;
}

// Rounds to nearest, ties to even; a NaN becomes a quiet NaN.
static inline uint16_t round_to_bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  if (x != x) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace tts
