// Wraps the sm_80 instructions that C++ cannot express. csrc/tests/cuda_shim has a file of this name with the
// same functions for the CPU.
//
// Fragments of mma.sync.m16n8k16, with g = lane / 4 and t = lane % 4, are registers of two 16-bit elements:
//   A [16, 16]  a[0]: row g,     columns 2t, 2t + 1   a[2]: row g,     columns 2t + 8, 2t + 9
//               a[1]: row g + 8, columns 2t, 2t + 1   a[3]: row g + 8, columns 2t + 8, 2t + 9
//   B [16, 8]   b0: rows 2t, 2t + 1 of column g       b1: rows 2t + 8, 2t + 9 of column g
//   C [16, 8]   c[0], c[1]: row g, columns 2t, 2t + 1; c[2], c[3]: row g + 8
#pragma once

#include <cstdint>

#include "cuda/tree_attention.h"

namespace tts::cuda {

__device__ inline unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char bytes[];
  return bytes;
}

// Copies 16 bytes from global to shared memory; if not `valid`, writes zeros and reads nothing.
__device__ inline void cp_async(void* to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;\n" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(to))),
               "l"(from), "r"(valid ? 16 : 0)
               : "memory");
}

__device__ inline void cp_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

// Waits until all but the last kPending groups of this thread's copies have arrived.
template <int kPending>
__device__ inline void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

// Loads four 8x8 matrices of 16-bit elements; lane 8 i + j passes the address of row j of matrix i. r[i]
// receives columns 2t, 2t + 1 of row g of matrix i.
__device__ inline void ldmatrix(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
}

// The same for their transposes: rows 2t, 2t + 1 of column g.
__device__ inline void ldmatrix_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
}

// c += a b
template <DType kType>
__device__ inline void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (kType == DType::kBFloat16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// Packs two floats, rounded to nearest even, with `low` in the lower half.
template <DType kType>
__device__ inline uint32_t pack(float low, float high) {
  uint32_t packed;
  if constexpr (kType == DType::kBFloat16) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(packed) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;\n" : "=r"(packed) : "f"(high), "f"(low));
  }
  return packed;
}

// 2 ** x to 2 ulp; 0 if the result is below the least normal number.
__device__ inline float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

__device__ inline float shuffle_xor(float x, int lanes) { return __shfl_xor_sync(0xffffffffu, x, lanes); }
__device__ inline int32_t warp_min(int32_t x) { return __reduce_min_sync(0xffffffffu, x); }
__device__ inline int32_t warp_max(int32_t x) { return __reduce_max_sync(0xffffffffu, x); }

}  // namespace tts::cuda
