#include "common/error.h"
#include "cuda/alignment.h"
#include "cuda/chunks.cuh"
#include "cuda/kv_ops.h"
#include "cuda/launch.cuh"

namespace tts::cuda {
namespace {

constexpr unsigned kThreads = 256;

template <class Chunk>
struct CopyArgs {
  ChunkTensor<Chunk> k, v;
  int64_t k_layer_stride, v_layer_stride;  // in chunks
  const int32_t* copies;
  int64_t num_copies, num_pages;
  int32_t num_heads, page_size, row_chunks;
};

// One block per pair and layer; pairs vary fastest.
template <class Chunk>
__global__ void __launch_bounds__(kThreads) copy_kernel(CopyArgs<Chunk> args) {
  const int64_t layer = blockIdx.x / args.num_copies, pair = blockIdx.x % args.num_copies;
  const int32_t source = args.copies[2 * pair], target = args.copies[2 * pair + 1];
  if (source < 0 || source >= args.num_pages || target < 0 || target >= args.num_pages) return;
  const int32_t head_chunks = args.page_size * args.row_chunks;
  for (int32_t i = threadIdx.x; i < args.num_heads * head_chunks; i += kThreads) {
    const int32_t head = i / head_chunks, token = i % head_chunks / args.row_chunks,
                  chunk = i % args.row_chunks;
    const Chunk k = *(args.k.at(source, head, token, chunk) + layer * args.k_layer_stride);
    const Chunk v = *(args.v.at(source, head, token, chunk) + layer * args.v_layer_stride);
    *(args.k.at(target, head, token, chunk) + layer * args.k_layer_stride) = k;
    *(args.v.at(target, head, token, chunk) + layer * args.v_layer_stride) = v;
  }
}

template <class Chunk>
void launch_copy(const Pages& pages, int64_t num_layers, int64_t k_layer_stride, int64_t v_layer_stride,
                 const int32_t* copies, int64_t num_copies, void* stream) {
  const int32_t bytes = pages.element_bytes, elements = static_cast<int32_t>(sizeof(Chunk)) / bytes;
  const CopyArgs<Chunk> args = {
      to_chunks<Chunk>(pages.k, bytes),
      to_chunks<Chunk>(pages.v, bytes),
      k_layer_stride / elements,
      v_layer_stride / elements,
      copies,
      num_copies,
      pages.num_pages,
      pages.num_kv_heads,
      pages.page_size,
      pages.head_dim / elements,
  };
  launch(copy_kernel<Chunk>, "copy_pages", dim3(static_cast<unsigned>(num_copies * num_layers)), kThreads,
         stream, args);
}

}  // namespace

void copy_pages(const Pages& pages, int64_t num_layers, int64_t k_layer_stride, int64_t v_layer_stride,
                const int32_t* copies, int64_t num_copies, void* stream) {
  if (num_copies == 0 || num_layers == 0) return;
  require(num_copies * num_layers < kMaxGrid, "copies: got ", num_copies, " pairs of pages in ", num_layers,
          " layers, expected fewer than ", kMaxGrid, " copies");
  const auto go = [&](auto chunk) {
    launch_copy<decltype(chunk)>(pages, num_layers, k_layer_stride, v_layer_stride, copies, num_copies,
                                 stream);
  };
  const int64_t elements = 16 / pages.element_bytes;
  if (aligned(pages) && k_layer_stride % elements == 0 && v_layer_stride % elements == 0) {
    go(uint4{});
  } else if (pages.element_bytes == 4) {
    go(uint32_t{});
  } else {
    go(uint16_t{});
  }
}

}  // namespace tts::cuda
