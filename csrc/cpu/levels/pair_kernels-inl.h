// The kernels of a level that multiplies bfloat16 pairs; included after its `Vec`.
#pragma once

#include "cpu/kernels/packed_linear-inl.h"
#include "cpu/kernels/tree_attention-inl.h"

constexpr BFloat16Kernels pair_kernels() {
  return {.attention = attention_kernels<Storage::kPairs>(),
          .attention_int8 = attention_kernels<Storage::kInt8Pairs>(),
          .linear = linear_kernels<Product::kPairs>()};
}
