// Pages as the words that the micro-kernels multiply.
#pragma once

#include "cpu/kernels/vec_math-inl.h"

// How pages become operand words.
enum class Storage {
  kFloat32,       // as they are
  kWideBFloat16,  // bfloat16 widened to float, once for all rows, or for few rows in registers
  kPairs,         // bfloat16 pairs, as they are
  kInt8,          // int8 converted to float, once for all rows, or for few rows in registers
};

template <Storage kStorage>
struct ElementOf {
  using Type = uint16_t;
};
template <>
struct ElementOf<Storage::kFloat32> {
  using Type = float;
};
template <>
struct ElementOf<Storage::kInt8> {
  using Type = int8_t;
};

// out[2 j] and out[2 j + 1] = the low and high bfloat16 of in[j], for rows of `width` words.
inline void widen_rows(const uint32_t* in, int rows, int width, uint32_t* out) {
  for (int j = 0; j < rows; ++j, in += width, out += 2 * width) {
    for (int i = 0; i < width; i += Vec::kLanes) {
      const F words = Vec::load(in + i);
      Vec::store(out + i, Vec::low_half(words));
      Vec::store(out + width + i, Vec::high_half(words));
    }
  }
}

inline void widen_bytes(const int8_t* in, int n, uint32_t* out) {
  for (int i = 0; i < n; i += Vec::kLanes) Vec::store(out + i, Vec::load_int8(in + i));
}
