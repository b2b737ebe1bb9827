// Launches kernels. csrc/tests/cuda_shim has a file of this name that runs them on the CPU.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>
#include <string>

#include "cuda/cuda_error.h"

namespace tts::cuda {

inline void check(cudaError_t error, const char* kernel) {
  if (error == cudaSuccess) return;
  throw CudaError(std::string(kernel) + ": " + cudaGetErrorString(error) + " (" + cudaGetErrorName(error) +
                  ")");
}

// Queues the kernel. Neither waits nor allocates, so a CUDA graph can capture it.
template <class Args>
void launch(void (*kernel)(Args), const char* name, dim3 grid, unsigned threads, void* stream, Args args,
            size_t shared_bytes = 0) {
  void* pointers[] = {&args};
  check(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, dim3(threads), pointers, shared_bytes,
                         static_cast<cudaStream_t>(stream)),
        name);
}

// The same with dynamic shared memory beyond the default limit of 48 KiB.
template <auto kKernel, class Args>
void launch_shared(const char* name, dim3 grid, unsigned threads, size_t shared_bytes, void* stream,
                   Args args) {
  static std::atomic<uint64_t> ready{0};  // devices already configured, one bit each
  int device = 0;
  check(cudaGetDevice(&device), name);
  const uint64_t bit = device < 64 ? uint64_t{1} << device : 0;
  if ((ready.load(std::memory_order_relaxed) & bit) == 0) {
    check(cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared_bytes)),
          name);
    ready.fetch_or(bit, std::memory_order_relaxed);
  }
  launch(kKernel, name, grid, threads, stream, args, shared_bytes);
}

}  // namespace tts::cuda
