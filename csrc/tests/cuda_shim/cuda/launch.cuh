// Replaces csrc/cuda/launch.cuh: runs kernels on the CPU before it returns.
#pragma once

#include "tests/cuda_shim/block.h"

namespace tts::cuda {

template <class Args>
void launch(void (*kernel)(Args), const char*, dim3 grid, unsigned threads, void*, Args args) {
  shim::run_grid(grid, threads, 0, [&] { kernel(args); });
}

template <auto kKernel, class Args>
void launch_shared(const char*, dim3 grid, unsigned threads, size_t shared_bytes, void*, Args args) {
  shim::run_grid(grid, threads, shared_bytes, [&] { kKernel(args); });
}

}  // namespace tts::cuda
