// Runs CUDA kernels on the CPU, so that their sources can be tested, and sanitized, without a GPU: the
// threads of a block are fibers, blocks run one after the other. What the kernels use of CUDA C++ is defined
// here; the files in cuda/ beside it take the place of those of csrc/cuda that speak to a GPU.
//
// It is a strict device, not a fast one. A warp runs ahead of the others until it waits for them, and shared
// memory is poisoned before a block starts and where an asynchronous copy is under way, so that a barrier or
// a wait that is missing shows in the results. Lanes that meet in different instructions, and blocks that
// wait for threads that never come, end the process with a message.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __grid_constant__
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x_size = 1, unsigned y_size = 1, unsigned z_size = 1)
      : x(x_size), y(y_size), z(z_size) {}
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

extern dim3 threadIdx, blockIdx;  // of the fiber that runs

void __syncthreads();

namespace tts::shim {

// Whether blocks, and the warps of a block, run last to first. Results must not depend on it.
extern bool reverse_order;

void run_grid(dim3 grid, unsigned threads, size_t shared_bytes, const std::function<void()>& kernel);

[[noreturn]] void fail(const char* what);

unsigned char* shared_memory();
bool in_shared_memory(const void* address, size_t bytes);

// Asynchronous copies of the thread that runs, performed as late as is allowed.
void copy_async(void* to, const void* from, bool valid);
void commit_copies();
void wait_for_copies(int pending_groups);

// All lanes of the warp meet in `instruction`, each with up to kSlotBytes; returns those of lane 0, and lane
// i's lie i * kSlotBytes behind. They stay until the lane's next meeting.
inline constexpr size_t kSlotBytes = 64;
const unsigned char* meet(const char* instruction, const void* mine, size_t bytes);

template <class T>
struct Lanes {
  const unsigned char* slots;

  const T& operator[](int lane) const { return *reinterpret_cast<const T*>(slots + lane * kSlotBytes); }
};

template <class T>
Lanes<T> exchange(const char* instruction, const T& mine) {
  static_assert(sizeof(T) <= kSlotBytes);
  return {meet(instruction, &mine, sizeof(T))};
}

}  // namespace tts::shim
