// Interface between the attention's host code and its kernels.
#pragma once

#include <cstdint>

#include "common/work_records.h"
#include "cuda/tree_attention.h"

namespace tts::cuda {

struct AttentionTensor {
  const uint16_t* data;  // of 16-bit elements
  int64_t outer_stride;  // per page, or per row of q
  int64_t head_stride;
  int64_t token_stride;
};

struct AttentionArgs {
  AttentionTensor q, k, v;
  const int32_t* work;
  WorkLayout layout;
  float* partials;
  int64_t partials_capacity;
  uint16_t* out;
  float* lse;
  const float* sinks;  // see TreeAttention
  int64_t num_q_rows;
  int32_t num_kv_heads, group, page_size, window;
  // For a product s, the logit over ln 2 is exponent_factor * s. With a soft cap it is
  // exponent_factor * tanh(s * tanh_factor / (2 log2 e)).
  float exponent_factor, tanh_factor;
  bool soft_capped;
  bool aligned;  // rows of q, K and V begin at multiples of 16 bytes
};

// Launches the kernels for one head_dim and both dtypes.
template <int kHeadDim>
void launch_tree_attention(const AttentionArgs& args, DType dtype, int64_t num_items, void* stream);

extern template void launch_tree_attention<64>(const AttentionArgs&, DType, int64_t, void*);
extern template void launch_tree_attention<128>(const AttentionArgs&, DType, int64_t, void*);

// Merges the partial results of queries; see WorkLayout.
void launch_merge(const TreeAttention& call, void* stream);

}  // namespace tts::cuda
