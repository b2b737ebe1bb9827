// All kernels of a level; included after its `Vec`.
#pragma once

#include "cpu/kernels/packed_linear-inl.h"
#include "cpu/kernels/quantised_linear-inl.h"
#include "cpu/kernels/row_ops-inl.h"
#include "cpu/kernels/sample_tokens-inl.h"
#include "cpu/kernels/score_pages-inl.h"
#include "cpu/kernels/tree_attention-inl.h"

constexpr LevelKernels all_kernels() {
  return {
      .attention_float32 = attention_kernels<Storage::kFloat32>(),
      .attention_bfloat16 = attention_kernels<Storage::kWideBFloat16>(),
      .attention_int8 = attention_kernels<Storage::kInt8>(),
      .attention_int8_bfloat16 = attention_kernels<Storage::kInt8>(),
      .page_scores = page_score_kernels(),
      .sampling = sample_kernels(),
      .linear_float32 = linear_kernels<Product::kFloats>(),
      .linear_bfloat16 = linear_kernels<Product::kHalves>(),
      .quantised = quantised_kernels(),
      .rows = row_kernels(),
  };
}
