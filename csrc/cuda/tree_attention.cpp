#include "cuda/tree_attention.h"

#include "common/error.h"
#include "cuda/alignment.h"
#include "cuda/tree_attention_kernels.h"

namespace tts::cuda {
namespace {

AttentionTensor to_tensor(const PageTensor& pages) {
  return {static_cast<const uint16_t*>(pages.data), pages.page_stride, pages.head_stride, pages.token_stride};
}

AttentionArgs make_args(const TreeAttention& call) {
  constexpr double kLog2E = 1.4426950408889634;
  const Pages& pages = call.pages;
  AttentionArgs args = {
      .q = {static_cast<const uint16_t*>(call.q.data), call.q.token_stride, call.q.head_stride, 0},
      .k = to_tensor(pages.k),
      .v = to_tensor(pages.v),
      .work = call.launch.work,
      .layout = WorkLayout(call.launch.capacity),
      .partials = call.launch.partials,
      .partials_capacity = call.launch.capacity.partials,
      .out = static_cast<uint16_t*>(call.out),
      .lse = call.lse,
      .sinks = call.sinks,
      .num_q_rows = call.num_q_rows,
      .num_kv_heads = pages.num_kv_heads,
      .group = call.num_q_heads / pages.num_kv_heads,
      .page_size = pages.page_size,
      .window = call.window,
      .exponent_factor = static_cast<float>(call.scale * kLog2E),
      .tanh_factor = 0,
      .soft_capped = call.soft_cap > 0,
      .aligned = aligned(pages) && aligned(call.q, pages.element_bytes),
  };
  if (args.soft_capped) {
    args.exponent_factor = static_cast<float>(call.soft_cap * kLog2E);
    args.tanh_factor = static_cast<float>(call.scale / call.soft_cap * 2 * kLog2E);
  }
  return args;
}

}  // namespace

void tree_attention(const TreeAttention& call, void* stream) {
  const Pages& pages = call.pages;
  const WorkLaunch& launch = call.launch;
  require(pages.head_dim == 64 || pages.head_dim == 128, "head_dim: got ", pages.head_dim,
          ", expected 64 or 128");
  require(call.scale > 0, "scale: got ", call.scale, ", expected > 0");
  require(aligned(call.out) && aligned(launch.partials) && aligned(launch.work),
          "out, partials, work: got addresses that are no multiples of 16");
  require(launch.num_items <= launch.capacity.items && launch.num_merges <= launch.capacity.queries &&
              launch.num_items * pages.num_kv_heads < kMaxGrid && pages.num_kv_heads < 65536,
          "num_items, num_merges: got ", launch.num_items, " and ", launch.num_merges, " for ",
          pages.num_kv_heads, " KV heads, expected at most the capacity's ", launch.capacity.items, " and ",
          launch.capacity.queries, " and fewer than ", kMaxGrid, " tiles");
  if (launch.num_items > 0) {
    const AttentionArgs args = make_args(call);
    if (pages.head_dim == 64) {
      launch_tree_attention<64>(args, call.dtype, launch.num_items, stream);
    } else {
      launch_tree_attention<128>(args, call.dtype, launch.num_items, stream);
    }
  }
  if (launch.num_merges > 0) launch_merge(call, stream);
}

}  // namespace tts::cuda
