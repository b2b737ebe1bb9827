// What the CUDA runtime refuses, as an exception. No CUDA header: bindings and callers include this.
#pragma once

#include <stdexcept>

namespace tts::cuda {

// Python: RuntimeError. Its message names the kernel and what the runtime said.
struct CudaError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace tts::cuda
