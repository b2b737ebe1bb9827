// Random numbers for tests.
#pragma once

#include <random>

namespace tts::test {

using Random = std::mt19937;

inline int draw(Random& random, int low, int high) {
  return std::uniform_int_distribution<int>(low, high)(random);
}

}  // namespace tts::test
