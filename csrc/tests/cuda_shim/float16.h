// The 16-bit formats in software.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "cuda/tree_attention.h"

namespace tts::shim {

inline float decode(cuda::DType type, uint16_t x) {
  float value;
  if (type == cuda::DType::kBFloat16) {
    const uint32_t bits = uint32_t{x} << 16;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
  }
  const int exponent = x >> 10 & 31, fraction = x & 1023;
  if (exponent == 31) {
    value = fraction ? NAN : INFINITY;
  } else {
    value = exponent ? std::ldexp(1024.0f + static_cast<float>(fraction), exponent - 25)
                     : std::ldexp(static_cast<float>(fraction), -24);
  }
  return x >> 15 ? -value : value;
}

inline float to_float(cuda::DType type, uint16_t x) {
  static const std::vector<float> values =
      [] {  // all numbers of both formats: tests spend most of their time here
        std::vector<float> table(2 << 16);
        for (size_t i = 0; i < table.size(); ++i) {
          table[i] = decode(static_cast<cuda::DType>(i >> 16), static_cast<uint16_t>(i));
        }
        return table;
      }();
  return values[static_cast<size_t>(type) << 16 | x];
}

// Rounds to nearest, ties to even.
inline uint16_t from_float(cuda::DType type, float x) {
  if (std::isnan(x)) return type == cuda::DType::kBFloat16 ? 0x7fc0 : 0x7e00;
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  if (type == cuda::DType::kBFloat16) return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  const uint16_t sign = bits >> 31 ? 0x8000 : 0;
  const float magnitude = std::fabs(x);
  if (magnitude == 0) return sign;
  if (magnitude >= 65520) return sign | 0x7c00;
  int exponent = 0;
  std::frexp(magnitude, &exponent);
  exponent = std::max(exponent, -13);  // below 2 ** -14 all numbers are 2 ** -24 apart
  const auto steps = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 11 - exponent)));
  return static_cast<uint16_t>(sign | (((exponent + 13) << 10) + steps));
}

}  // namespace tts::shim
