// Replaces csrc/cuda/ptx.cuh: the same functions, with the fragments described in that file.
#pragma once

#include <cfloat>
#include <cstdint>

#include "cuda/tree_attention.h"
#include "tests/cuda_shim/block.h"
#include "tests/cuda_shim/float16.h"

namespace tts::cuda {

inline unsigned char* shared_memory() { return shim::shared_memory(); }

inline void cp_async(void* to, const void* from, bool valid) { shim::copy_async(to, from, valid); }
inline void cp_async_commit() { shim::commit_copies(); }
template <int kPending>
void cp_async_wait() {
  shim::wait_for_copies(kPending);
}

inline const void* checked_row(const void* row) {
  if (!shim::in_shared_memory(row, 16) || reinterpret_cast<uintptr_t>(row) % 16) {
    shim::fail("ldmatrix: an address that is not aligned, or not in shared memory");
  }
  return row;
}

inline void ldmatrix(uint32_t (&r)[4], const void* row) {
  const auto rows = shim::exchange<const void*>("ldmatrix", checked_row(row));
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  for (int i = 0; i < 4; ++i) std::memcpy(&r[i], static_cast<const uint16_t*>(rows[8 * i + g]) + 2 * t, 4);
}

inline void ldmatrix_trans(uint32_t (&r)[4], const void* row) {
  const auto rows = shim::exchange<const void*>("ldmatrix.trans", checked_row(row));
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  for (int i = 0; i < 4; ++i) {
    r[i] = static_cast<const uint16_t*>(rows[8 * i + 2 * t])[g] |
           uint32_t{static_cast<const uint16_t*>(rows[8 * i + 2 * t + 1])[g]} << 16;
  }
}

template <DType kType>
void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct Operands {
    float a[4][2], b[2][2];
  } mine;
  const auto unpack = [](float (&to)[2], uint32_t pair) {
    to[0] = shim::to_float(kType, static_cast<uint16_t>(pair));
    to[1] = shim::to_float(kType, static_cast<uint16_t>(pair >> 16));
  };
  for (int i = 0; i < 4; ++i) unpack(mine.a[i], a[i]);
  unpack(mine.b[0], b0);
  unpack(mine.b[1], b1);
  const auto lanes = shim::exchange("mma", mine);
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  for (int k = 0; k < 16; ++k) {  // column of A, row of B
    const Operands& row = lanes[4 * g + k % 8 / 2];
    for (int column = 0; column < 2; ++column) {
      const Operands& other = lanes[4 * (2 * t + column) + k % 8 / 2];
      const float b = other.b[k / 8][k % 2];
      c[column] += row.a[k / 8 * 2][k % 2] * b;
      c[2 + column] += row.a[k / 8 * 2 + 1][k % 2] * b;
    }
  }
}

template <DType kType>
uint32_t pack(float low, float high) {
  return shim::from_float(kType, low) | uint32_t{shim::from_float(kType, high)} << 16;
}

inline float fast_exp2(float x) {
  const float y = exp2f(x);
  return y < FLT_MIN ? 0 : y;
}

inline float shuffle_xor(float x, int lanes) {
  return shim::exchange("shuffle", x)[(static_cast<int>(threadIdx.x) % 32) ^ lanes];
}

template <class Choose>
int32_t reduce(const char* instruction, int32_t x, Choose choose) {
  const auto lanes = shim::exchange(instruction, x);
  for (int lane = 0; lane < 32; ++lane) x = choose(x, lanes[lane]);
  return x;
}
inline int32_t warp_min(int32_t x) {
  return reduce("redux.min", x, [](int32_t a, int32_t b) { return a < b ? a : b; });
}
inline int32_t warp_max(int32_t x) {
  return reduce("redux.max", x, [](int32_t a, int32_t b) { return a > b ? a : b; });
}

}  // namespace tts::cuda
