#include "common/error.h"
#include "cuda/alignment.h"
#include "cuda/chunks.cuh"
#include "cuda/kv_ops.h"
#include "cuda/launch.cuh"

namespace tts::cuda {
namespace {

constexpr unsigned kThreads = 128;

template <class Chunk>
struct AppendArgs {
  ChunkTensor<Chunk> k_pages, v_pages;
  ChunkTensor<const Chunk> k, v;  // "pages" are tokens
  const int32_t* slots;
  int64_t num_slots;
  int32_t page_size, num_heads, row_chunks;
};

// One block per token.
template <class Chunk>
__global__ void __launch_bounds__(kThreads) append_kernel(AppendArgs<Chunk> args) {
  const int64_t token = blockIdx.x;
  const int32_t slot = args.slots[token];
  if (slot < 0 || slot >= args.num_slots) return;
  const int32_t page = slot / args.page_size, offset = slot % args.page_size;
  for (int32_t i = threadIdx.x; i < args.num_heads * args.row_chunks; i += kThreads) {
    const int32_t head = i / args.row_chunks, chunk = i % args.row_chunks;
    const Chunk k = *args.k.at(token, head, 0, chunk), v = *args.v.at(token, head, 0, chunk);
    *args.k_pages.at(page, head, offset, chunk) = k;
    *args.v_pages.at(page, head, offset, chunk) = v;
  }
}

template <class Chunk>
void launch_append(const Pages& pages, const Rows& k, const Rows& v, const int32_t* slots, int64_t num_tokens,
                   void* stream) {
  const int32_t bytes = pages.element_bytes;
  const AppendArgs<Chunk> args = {
      to_chunks<Chunk>(pages.k, bytes),
      to_chunks<Chunk>(pages.v, bytes),
      to_chunks<const Chunk>(k, bytes),
      to_chunks<const Chunk>(v, bytes),
      slots,
      pages.num_pages * pages.page_size,
      pages.page_size,
      pages.num_kv_heads,
      static_cast<int32_t>(pages.head_dim * bytes / sizeof(Chunk)),
  };
  launch(append_kernel<Chunk>, "append_kv", dim3(static_cast<unsigned>(num_tokens)), kThreads, stream, args);
}

}  // namespace

void append_kv(const Pages& pages, const Rows& k, const Rows& v, const int32_t* slots, int64_t num_tokens,
               void* stream) {
  if (num_tokens == 0) return;
  require(num_tokens < kMaxGrid, "slots: got ", num_tokens, " tokens, expected fewer than ", kMaxGrid);
  if (aligned(pages) && aligned(k, pages.element_bytes) && aligned(v, pages.element_bytes)) {
    launch_append<uint4>(pages, k, v, slots, num_tokens, stream);
  } else if (pages.element_bytes == 4) {
    launch_append<uint32_t>(pages, k, v, slots, num_tokens, stream);
  } else {
    launch_append<uint16_t>(pages, k, v, slots, num_tokens, stream);
  }
}

}  // namespace tts::cuda
