// Random numbers for the tests of CUDA kernels.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <random>

#include "tests/cuda_shim/float16.h"

namespace tts::cuda {

using Random = std::mt19937;

inline int draw(Random& random, int low, int high) {
  return std::uniform_int_distribution<int>(low, high)(random);
}

template <class T>
T pick(Random& random, std::initializer_list<T> values) {
  return values.begin()[draw(random, 0, static_cast<int>(values.size()) - 1)];
}

inline uint16_t random_value(Random& random, DType dtype) {
  return shim::from_float(dtype, std::normal_distribution<float>()(random));
}

}  // namespace tts::cuda
