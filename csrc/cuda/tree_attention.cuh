// The attention kernel: one block computes one item of the work list for one KV head.
//
// K and V arrive in tiles of 64 tokens through a ring of stages in shared memory, which cp.async fills ahead.
// With 64 rows per item, each of the 4 warps takes 16 rows and all tokens of a tile. With 16 rows, each warp
// takes all rows and 16 tokens of each tile, and the warps' softmax states are merged at the end, in warp
// order.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/work_records.h"
#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"
#include "cuda/sinks.cuh"
#include "cuda/tree_attention.h"
#include "cuda/tree_attention_kernels.h"

namespace tts::cuda {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kTileTokens = 64;

// Number of K and V tiles in the ring: as many as let two blocks fit a multiprocessor.
template <int kHeadDim>
constexpr int kStages = kHeadDim == 64 ? 3 : 2;

template <int kHeadDim>
struct SharedTiles {
  static constexpr int kRowChunks = kHeadDim / 8;  // chunks of 16 bytes

  uint4 tiles[kStages<kHeadDim>][2][kTileTokens * kRowChunks];  // K and V
  int64_t offsets[kStages<kHeadDim>][2][kTileTokens];           // of tokens in the page tensors; -1: absent
  // Whether a token exists. One entry more than stages: a tile's flags are still read while the first warps
  // store those of the tile that reuses its stage.
  bool held[kStages<kHeadDim> + 1][kTileTokens];

  // Rows are 128 or 256 bytes apart, so chunk c of every row would fall into the same banks; the exclusive or
  // spreads 8 successive rows over all banks.
  static constexpr __device__ int at(int token, int chunk) {
    return token * kRowChunks + (chunk ^ (token & 7));
  }
};

// Softmax states that the warps store over the tiles.
template <int kHeadDim>
struct SharedStates {
  static constexpr int kRowFloats = kHeadDim + 8;  // padding avoids bank conflicts

  float max[16 * kWarps];
  float sum[16 * kWarps];
  float out[16 * kWarps][kRowFloats];
};

// A warp's state of its 16 rows: this thread has elements of rows g and g + 8 (see ptx.cuh).
template <int kHeadDim>
struct WarpState {
  uint32_t q[kHeadDim / 16][4];
  float out[kHeadDim / 8][4] = {};
  float max[2] = {-INFINITY, -INFINITY};  // of products, before exponent_factor
  float sum[2] = {0, 0};                  // of this thread's columns
  int32_t newest[2];                      // tokens oldest < token <= newest of the item are visible
  int32_t oldest[2];
};

__device__ inline uint32_t load_pair(const uint16_t* from, bool aligned) {
  if (aligned) return *reinterpret_cast<const uint32_t*>(from);
  return from[0] | uint32_t{from[1]} << 16;
}

// Tokens of the item, counted from its first token.
struct TokenRange {
  int32_t begin, end;                    // some row may see these; begin is the start of a tile
  int32_t unmasked_begin, unmasked_end;  // all rows see these
};

__device__ inline TokenRange token_range(const AttentionArgs& args, const WorkItem& item) {
  int32_t first = INT32_MAX, last = INT32_MIN;  // positions of the rows
  for (int row = item.row_begin + static_cast<int>(threadIdx.x) % 32; row < item.row_end; row += 32) {
    const int32_t position = args.work[args.layout.query_position + row / args.group];
    first = position < first ? position : first;
    last = position > last ? position : last;
  }
  first = warp_min(first) - item.first_position;
  last = warp_max(last) - item.first_position;
  const int32_t end = last + 1 < item.num_tokens ? last + 1 : item.num_tokens;
  if (args.window == 0) return {0, end, 0, item.num_unmasked};
  const int32_t begin = first - args.window + 1, unmasked_begin = last - args.window + 1;
  return {begin > 0 ? begin / kTileTokens * kTileTokens : 0, end, unmasked_begin, item.num_unmasked};
}

template <int kHeadDim>
__device__ void load_rows(const AttentionArgs& args, const WorkItem& item, int32_t kv_head, int32_t first_row,
                          WarpState<kHeadDim>& state) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int32_t row = first_row + lane / 4 + 8 * half;
    const bool in_item = row < item.row_end;
    const int32_t query = in_item ? row / args.group : 0;
    const int32_t head = kv_head * args.group + (in_item ? row % args.group : 0);
    const int64_t q_row = args.work[args.layout.query_order + query];
    const bool live = in_item && q_row < args.num_q_rows;
    const uint16_t* q =
        args.q.data + q_row * args.q.outer_stride + head * args.q.head_stride + 2 * (lane % 4);
#pragma unroll
    for (int k = 0; k < kHeadDim / 16; ++k) {
      state.q[k][half] = live ? load_pair(q + 16 * k, args.aligned) : 0;
      state.q[k][half + 2] = live ? load_pair(q + 16 * k + 8, args.aligned) : 0;
    }
    const int32_t last = args.work[args.layout.query_position + query] - item.first_position;
    state.newest[half] = last < item.num_tokens ? last : item.num_tokens - 1;
    state.oldest[half] = args.window > 0 ? last - args.window : INT32_MIN;
  }
}

// Page of a token of the item; -1 after its end and for evicted pages. Half of the threads ask for K, half
// for V.
__device__ inline int32_t page_of(const AttentionArgs& args, const WorkItem& item, int32_t token) {
  return token < item.num_tokens ? args.work[args.layout.pages + item.page_offset + token / args.page_size]
                                 : -1;
}

template <int kHeadDim>
__device__ void store_offset(const AttentionArgs& args, int32_t token, int32_t page, int stage, int held,
                             SharedTiles<kHeadDim>& shared) {
  const int kind = threadIdx.x / kTileTokens;
  if (kind == 0) shared.held[held][threadIdx.x] = page >= 0;
  const AttentionTensor& tensor = kind == 0 ? args.k : args.v;
  shared.offsets[stage][kind][threadIdx.x % kTileTokens] =
      page < 0 ? -1 : page * tensor.outer_stride + token % args.page_size * tensor.token_stride;
}

// Loads rows of any alignment; not asynchronous.
template <int kHeadDim>
__device__ void load_unaligned_tile(const AttentionArgs& args, int32_t kv_head, int stage,
                                    SharedTiles<kHeadDim>& shared) {
  constexpr int kRowChunks = SharedTiles<kHeadDim>::kRowChunks;
#pragma unroll 1
  for (int i = threadIdx.x; i < 2 * kTileTokens * kRowChunks; i += kThreads) {
    const int kind = i / (kTileTokens * kRowChunks), token = i / kRowChunks % kTileTokens,
              chunk = i % kRowChunks;
    const AttentionTensor& tensor = kind == 0 ? args.k : args.v;
    const int64_t offset = shared.offsets[stage][kind][token];
    const uint16_t* from = tensor.data + kv_head * tensor.head_stride + 8 * chunk + offset;
    uint32_t pairs[4] = {};
    for (int pair = 0; pair < 4 && offset >= 0; ++pair) pairs[pair] = load_pair(from + 2 * pair, false);
    shared.tiles[stage][kind][shared.at(token, chunk)] = {pairs[0], pairs[1], pairs[2], pairs[3]};
  }
}

template <int kHeadDim>
__device__ void load_tile(const AttentionArgs& args, int32_t kv_head, int stage,
                          SharedTiles<kHeadDim>& shared) {
  if (!args.aligned) return load_unaligned_tile(args, kv_head, stage, shared);
  constexpr int kRowChunks = SharedTiles<kHeadDim>::kRowChunks;
  const int chunk = threadIdx.x % kRowChunks;
#pragma unroll
  for (int kind = 0; kind < 2; ++kind) {
    const AttentionTensor& tensor = kind == 0 ? args.k : args.v;
    const uint16_t* from = tensor.data + kv_head * tensor.head_stride + 8 * chunk;
#pragma unroll
    for (int step = 0; step < kTileTokens * kRowChunks / kThreads; ++step) {
      const int token = threadIdx.x / kRowChunks + step * (kThreads / kRowChunks);
      const int64_t offset = shared.offsets[stage][kind][token];
      cp_async(&shared.tiles[stage][kind][shared.at(token, chunk)], from + (offset < 0 ? 0 : offset),
               offset >= 0);
    }
  }
}

// Computes s [16 rows, kTokens] for the warp's tokens, from `token` of the tile on.
template <DType kType, int kHeadDim, int kTokens>
__device__ void multiply_keys(const WarpState<kHeadDim>& state, const uint4* keys, int token,
                              float (&s)[kTokens / 8][4]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int k = 0; k < kHeadDim / 16; ++k) {
#pragma unroll
    for (int n = 0; n < kTokens / 16; ++n) {
      uint32_t b[4];  // columns are tokens: fragments of tokens 0..7 and 8..15
      ldmatrix(
          b,
          &keys[SharedTiles<kHeadDim>::at(token + 16 * n + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2)]);
      mma<kType>(s[2 * n], state.q[k], b[0], b[1]);
      mma<kType>(s[2 * n + 1], state.q[k], b[2], b[3]);
    }
  }
}

template <DType kType, int kHeadDim, int kTokens>
__device__ void multiply_values(const float (&p)[kTokens / 8][4], const uint4* values, int token,
                                WarpState<kHeadDim>& state) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int k = 0; k < kTokens / 16; ++k) {
    // The C fragments of 16 tokens are the A fragment of the next product.
    const uint32_t a[4] = {pack<kType>(p[2 * k][0], p[2 * k][1]), pack<kType>(p[2 * k][2], p[2 * k][3]),
                           pack<kType>(p[2 * k + 1][0], p[2 * k + 1][1]),
                           pack<kType>(p[2 * k + 1][2], p[2 * k + 1][3])};
#pragma unroll
    for (int n = 0; n < kHeadDim / 16; ++n) {
      uint32_t b[4];  // rows are tokens: fragments of channels 0..7 and 8..15
      ldmatrix_trans(b, &values[SharedTiles<kHeadDim>::at(token + 16 * k + lane % 16, 2 * n + lane / 16)]);
      mma<kType>(state.out[2 * n], a, b[0], b[1]);
      mma<kType>(state.out[2 * n + 1], a, b[2], b[3]);
    }
  }
}

// Turns the products of tokens from `token` of the item on into probabilities relative to the running
// maximum, and rescales the state to it. `held`: which tokens exist; read only if `masked`.
template <int kHeadDim, int kTokens>
__device__ void softmax_step(const AttentionArgs& args, int32_t token, bool masked, const bool* held,
                             float (&s)[kTokens / 8][4], WarpState<kHeadDim>& state) {
  if (args.soft_capped) {
#pragma unroll
    for (auto& fragment : s) {
#pragma unroll
      for (float& x : fragment) x = 1 - 2 / (fast_exp2(x * args.tanh_factor) + 1);  // tanh, without inf / inf
    }
  }
  if (masked) {
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i) {
      const int half = i % 4 / 2;
      const int32_t column = i / 4 * 8 + static_cast<int>(threadIdx.x) % 4 * 2 + i % 2;
      const bool seen = token + column <= state.newest[half] && token + column > state.oldest[half];
      if (!seen || !held[column]) s[i / 4][i % 4] = -INFINITY;
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float max = state.max[half];
#pragma unroll
    for (const auto& fragment : s) max = fmaxf(max, fmaxf(fragment[2 * half], fragment[2 * half + 1]));
    max = fmaxf(max, shuffle_xor(max, 1));
    max = fmaxf(max, shuffle_xor(max, 2));
    const float shift = max == -INFINITY ? 0 : max * args.exponent_factor;  // nothing seen yet: 0, not NaN
    const float rescale = fast_exp2(state.max[half] * args.exponent_factor - shift);
    state.max[half] = max;
    float sum = 0;
#pragma unroll
    for (auto& fragment : s) {
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        fragment[i] = fast_exp2(fragment[i] * args.exponent_factor - shift);
        sum += fragment[i];
      }
    }
    state.sum[half] = state.sum[half] * rescale + sum;
#pragma unroll
    for (auto& fragment : state.out) {
      fragment[2 * half] *= rescale;
      fragment[2 * half + 1] *= rescale;
    }
  }
}

template <int kHeadDim>
__device__ void leave_state(const WarpState<kHeadDim>& state, SharedStates<kHeadDim>& shared) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float sum = state.sum[half];
    sum += shuffle_xor(sum, 1);
    sum += shuffle_xor(sum, 2);
    const int row = 16 * warp + 8 * half + lane / 4;
    if (lane % 4 == 0) {
      shared.max[row] = state.max[half];
      shared.sum[row] = sum;
    }
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; ++n) {
      *reinterpret_cast<float2*>(&shared.out[row][8 * n + lane % 4 * 2]) = {state.out[n][2 * half],
                                                                            state.out[n][2 * half + 1]};
    }
  }
}

// Merged state of one row, for the 8 threads that write it: this thread has channels 4 i + 32 j.
template <int kHeadDim>
struct RowResult {
  float4 out[kHeadDim / 32];
  float lse;
};

template <int kHeadDim, int kHeight>
__device__ RowResult<kHeadDim> merge_states(const SharedStates<kHeadDim>& shared, int row,
                                            float exponent_factor) {
  const int channel = threadIdx.x % 8 * 4;
  float max = -INFINITY, sum = 0;
#pragma unroll
  for (int r = row; r < 16 * kWarps; r += kHeight) max = fmaxf(max, shared.max[r]);
  RowResult<kHeadDim> result = {};
  const float shift = max == -INFINITY ? 0 : max * exponent_factor;
#pragma unroll
  for (int r = row; r < 16 * kWarps; r += kHeight) {
    const float weight = fast_exp2(shared.max[r] * exponent_factor - shift);
    sum += shared.sum[r] * weight;
#pragma unroll
    for (int i = 0; i < kHeadDim / 32; ++i) {
      const float4 part = *reinterpret_cast<const float4*>(&shared.out[r][32 * i + channel]);
      result.out[i].x += part.x * weight;
      result.out[i].y += part.y * weight;
      result.out[i].z += part.z * weight;
      result.out[i].w += part.w * weight;
    }
  }
  const float factor = sum > 0 ? 1 / sum : 0;  // a row that saw nothing is (0, -inf)
#pragma unroll
  for (float4& out : result.out) out = {out.x * factor, out.y * factor, out.z * factor, out.w * factor};
  result.lse = sum > 0 ? 0.6931471805599453f * (shift + log2f(sum)) : -INFINITY;
  return result;
}

template <DType kType, int kHeadDim>
__device__ void store_row(const AttentionArgs& args, const WorkItem& item, int32_t kv_head, int32_t row,
                          const RowResult<kHeadDim>& result) {
  const int channel = threadIdx.x % 8 * 4;
  if (item.partial_base == kDirect) {
    const int64_t q_row = args.work[args.layout.query_order + row / args.group];
    if (q_row >= args.num_q_rows) return;
    const int32_t head = kv_head * args.group + row % args.group;
    const int64_t out_row = q_row * args.num_kv_heads * args.group + head;
    float factor = 1, lse = result.lse;
    if (args.sinks != nullptr) factor = count_sink(args.sinks[head], lse);
#pragma unroll
    for (int i = 0; i < kHeadDim / 32; ++i) {
      const float4& x = result.out[i];
      *reinterpret_cast<uint2*>(args.out + out_row * kHeadDim + 32 * i + channel) = {
          pack<kType>(x.x * factor, x.y * factor), pack<kType>(x.z * factor, x.w * factor)};
    }
    if (channel == 0) args.lse[out_row] = lse;
  } else {
    const int64_t partial = kv_head * args.partials_capacity + item.partial_base + row;
#pragma unroll
    for (int i = 0; i < kHeadDim / 32; ++i) {
      *reinterpret_cast<float4*>(args.partials + partial * kHeadDim + 32 * i + channel) = result.out[i];
    }
    if (channel == 0)
      args.partials[args.num_kv_heads * args.partials_capacity * kHeadDim + partial] = result.lse;
  }
}

template <DType kType, int kHeadDim, int kHeight>
__device__ void attend(const AttentionArgs& args, const WorkItem& item, int32_t kv_head) {
  constexpr int kS = kStages<kHeadDim>, kTokens = kHeight == 16 ? kTileTokens / kWarps : kTileTokens;
  auto& shared = *reinterpret_cast<SharedTiles<kHeadDim>*>(shared_memory());
  const int warp = threadIdx.x / 32;
  const int warp_token = kHeight == 16 ? warp * kTokens : 0;
  const int32_t first_row = item.row_begin + (kHeight == 16 ? 0 : 16 * warp);

  const TokenRange range = token_range(args, item);
  const int32_t my_token = range.begin + threadIdx.x % kTileTokens;
#pragma unroll
  for (int stage = 0; stage < kS; ++stage) {
    const int32_t token = my_token + stage * kTileTokens;
    store_offset(args, token, page_of(args, item, token), stage, stage, shared);
  }
  __syncthreads();
#pragma unroll 1
  for (int stage = 0; stage < kS - 1; ++stage) {
    if (range.begin + stage * kTileTokens < range.end) load_tile(args, kv_head, stage, shared);
    cp_async_commit();
  }
  WarpState<kHeadDim> state;
  load_rows(args, item, kv_head, first_row, state);

  int stage = 0, held = 0;
  for (int32_t start = range.begin; start < range.end; start += kTileTokens) {
    cp_async_wait<kS - 2>();
    __syncthreads();  // all threads can read the tile, and all are done with the previous one
    if (start + (kS - 1) * kTileTokens < range.end) {
      load_tile(args, kv_head, stage == 0 ? kS - 1 : stage - 1, shared);
    }
    cp_async_commit();
    const int32_t token_ahead = my_token + start - range.begin + kS * kTileTokens;
    const int32_t page_ahead = page_of(args, item, token_ahead);
    if (first_row < item.row_end) {
      float s[kTokens / 8][4] = {};
      multiply_keys<kType, kHeadDim, kTokens>(state, shared.tiles[stage][0], warp_token, s);
      const int32_t first = start + warp_token;
      const bool masked = first < range.unmasked_begin || first + kTokens > range.unmasked_end;
      softmax_step<kHeadDim, kTokens>(args, first, masked, &shared.held[held][warp_token], s, state);
      multiply_values<kType, kHeadDim, kTokens>(s, shared.tiles[stage][1], warp_token, state);
    }
    store_offset(args, token_ahead, page_ahead, stage, held == 0 ? kS : held - 1, shared);
    stage = stage == kS - 1 ? 0 : stage + 1;
    held = held == kS ? 0 : held + 1;
  }

  __syncthreads();
  auto& states = *reinterpret_cast<SharedStates<kHeadDim>*>(shared_memory());
  static_assert(sizeof(states) <= sizeof(shared));
  leave_state(state, states);
  __syncthreads();
  for (int row = threadIdx.x / 8; row < item.row_end - item.row_begin; row += kThreads / 8) {
    store_row<kType>(args, item, kv_head, item.row_begin + row,
                     merge_states<kHeadDim, kHeight>(states, row, args.exponent_factor));
  }
}

// Grid: num_items * num_kv_heads blocks; heads vary fastest, so that the most expensive items start first.
template <DType kType, int kHeadDim>
__global__ void __launch_bounds__(kThreads, 2)
    tree_attention_kernel(const __grid_constant__ AttentionArgs args) {
  const int32_t index = blockIdx.x / args.num_kv_heads, kv_head = blockIdx.x % args.num_kv_heads;
  const WorkItem item = reinterpret_cast<const WorkItem*>(args.work + args.layout.items)[index];
  if (index >= args.work[0]) return;
  if (item.height == 16) {
    attend<kType, kHeadDim, 16>(args, item, kv_head);
  } else {
    attend<kType, kHeadDim, 64>(args, item, kv_head);
  }
}

template <int kHeadDim>
void launch_tree_attention(const AttentionArgs& args, DType dtype, int64_t num_items, void* stream) {
  const dim3 grid(static_cast<unsigned>(num_items * args.num_kv_heads));
  constexpr size_t kShared = sizeof(SharedTiles<kHeadDim>);
  static_assert(2 * (kShared + 1024) <= 164 << 10, "two blocks fit an A100, where each takes 1 KiB more");
  if (dtype == DType::kBFloat16) {
    launch_shared<tree_attention_kernel<DType::kBFloat16, kHeadDim>>("tree_attention", grid, kThreads,
                                                                     kShared, stream, args);
  } else {
    launch_shared<tree_attention_kernel<DType::kFloat16, kHeadDim>>("tree_attention", grid, kThreads, kShared,
                                                                    stream, args);
  }
}

}  // namespace tts::cuda
