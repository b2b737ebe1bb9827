// Merges the results of queries whose path is split among several items: one block merges all heads of a
// group for one query.
#include <cmath>

#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"
#include "cuda/sinks.cuh"
#include "cuda/tree_attention_kernels.h"

namespace tts::cuda {
namespace {

constexpr unsigned kThreads = 128;

struct MergeArgs {
  const int32_t* work;
  WorkLayout layout;
  const float* partials;
  int64_t partials_capacity;
  uint16_t* out;
  float* lse;
  const float* sinks;  // see TreeAttention
  int64_t num_q_rows;
  int32_t num_kv_heads, group, head_dim;
};

// A row takes head_dim / 4 threads with 4 channels each. Partials are added in path order. After the planned
// queries, query i is row i of q, padding of the batch that has seen nothing.
template <DType kType>
__global__ void __launch_bounds__(kThreads) merge_kernel(MergeArgs args) {
  const int32_t query = blockIdx.x, kv_head = blockIdx.y;
  const bool planned = query < args.work[1];
  const int64_t q_row = planned ? args.work[args.layout.query_order + query] : query;
  const int32_t* bases = args.work + args.layout.merge_base;
  const int32_t begin = planned ? args.work[args.layout.merge_begin + query] : 0;
  const int32_t end = planned ? args.work[args.layout.merge_begin + query + 1] : 0;
  if (planned && begin == end) return;  // an item has written it
  if (q_row >= args.num_q_rows) return;
  const int32_t row_threads = args.head_dim / 4, channel = threadIdx.x % row_threads * 4;
  const float* partial_lse = args.partials + args.num_kv_heads * args.partials_capacity * args.head_dim;
  for (int32_t member = threadIdx.x / row_threads; member < args.group; member += kThreads / row_threads) {
    const int64_t first =
        kv_head * args.partials_capacity + static_cast<int64_t>(query) * args.group + member;
    float max = -INFINITY, sum = 0;
    for (int32_t i = begin; i < end; ++i) max = fmaxf(max, partial_lse[first + bases[i]]);
    const float shift = max == -INFINITY ? 0 : max;  // nothing seen: 0, not NaN
    float4 acc = {0, 0, 0, 0};
    for (int32_t i = begin; i < end; ++i) {
      const int64_t partial = first + bases[i];
      const float weight = expf(partial_lse[partial] - shift);
      const float4 part = *reinterpret_cast<const float4*>(args.partials + partial * args.head_dim + channel);
      sum += weight;
      acc = {acc.x + part.x * weight, acc.y + part.y * weight, acc.z + part.z * weight,
             acc.w + part.w * weight};
    }
    float factor = sum > 0 ? 1 / sum : 0, lse = sum > 0 ? shift + logf(sum) : -INFINITY;
    if (args.sinks != nullptr && planned) {
      factor *= count_sink(args.sinks[kv_head * args.group + member], lse);
    }
    const int64_t out_row = (q_row * args.num_kv_heads + kv_head) * args.group + member;
    *reinterpret_cast<uint2*>(args.out + out_row * args.head_dim + channel) = {
        pack<kType>(acc.x * factor, acc.y * factor), pack<kType>(acc.z * factor, acc.w * factor)};
    if (channel == 0) args.lse[out_row] = lse;
  }
}

}  // namespace

void launch_merge(const TreeAttention& call, void* stream) {
  const WorkLaunch& work = call.launch;
  const Pages& pages = call.pages;
  const MergeArgs args = {
      work.work,
      WorkLayout(work.capacity),
      work.partials,
      work.capacity.partials,
      static_cast<uint16_t*>(call.out),
      call.lse,
      call.sinks,
      call.num_q_rows,
      pages.num_kv_heads,
      call.num_q_heads / pages.num_kv_heads,
      pages.head_dim,
  };
  const dim3 grid(static_cast<unsigned>(work.num_merges), static_cast<unsigned>(pages.num_kv_heads));
  launch(call.dtype == DType::kBFloat16 ? merge_kernel<DType::kBFloat16> : merge_kernel<DType::kFloat16>,
         "merge_partials", grid, kThreads, stream, args);
}

}  // namespace tts::cuda
