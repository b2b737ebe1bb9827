// An error of the CUDA runtime as an exception. Includes no CUDA header, as bindings and callers include this
// file.
#pragma once

#include <stdexcept>

namespace tts::cuda {

// Python: RuntimeError. The message names the kernel and gives the runtime's error text.
struct CudaError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace tts::cuda
