// Runs CUDA kernels on the CPU, so that their sources can be tested, and sanitized, without a GPU. The
// threads of a block are fibers; blocks run one at a time. This file defines the CUDA C++ that the kernels
// use; the files in cuda/ replace the files of csrc/cuda that need a GPU.
//
// The device is strict, not fast. A warp runs ahead of the others until it waits for them, and shared memory
// is poisoned before a block starts and while an asynchronous copy is in flight, so a missing barrier or wait
// shows in the results. Lanes that meet in different instructions, and blocks that wait for threads that
// never arrive, end the process with a message.
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

extern dim3 threadIdx, blockIdx;  // of the running fiber

void __syncthreads();

namespace tts::shim {

// Whether blocks, and the warps of a block, run last to first. Results must not depend on this order.
extern bool reverse_order;

void run_grid(dim3 grid, unsigned threads, size_t shared_bytes, const std::function<void()>& kernel);

[[noreturn]] void fail(const char* what);

unsigned char* shared_memory();
bool in_shared_memory(const void* address, size_t bytes);

// Asynchronous copies of the running thread, performed as late as allowed.
void copy_async(void* to, const void* from, bool valid);
void commit_copies();
void wait_for_copies(int pending_groups);

// All lanes of the warp meet in `instruction`, each with up to kSlotBytes. Returns lane 0's bytes; lane i's
// are i * kSlotBytes further. They stay valid until the lane's next meeting.
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
