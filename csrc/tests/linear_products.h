// Shared by the tests of products with panels of 16 outputs. A Product has rows, columns(), end, before,
// sum(row, panel, lane) in float64, and run(begin, end, num_threads), which computes these rows.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "cpu/packed_linear.h"
#include "tests/check.h"
#include "tests/random.h"

namespace tts::test {

template <class Product>
double expected(const Product& product, int64_t row, int64_t column) {
  const int64_t panel = column / 16, lane = column % 16;
  if (product.end == LinearEnd::kSwiGLU) {
    const double gate = product.sum(row, 2 * panel, lane);
    return gate / (1 + std::exp(-gate)) * product.sum(row, 2 * panel + 1, lane);
  }
  const float before = product.before[static_cast<size_t>(row * product.columns() + column)];
  return (product.end == LinearEnd::kAdd ? double{before} : 0.0) + product.sum(row, panel, lane);
}

// out: outputs of all rows.
template <class Product>
void check_entry(const Product& product, const std::vector<float>& out, int64_t row, int64_t column) {
  const double exact = expected(product, row, column);
  const float got = out[static_cast<size_t>(row * product.columns() + column)];
  CHECK(std::abs(double{got} - exact) < 1e-4 * (1 + std::abs(exact)));
}

// A row's bits must not depend on other rows or on the number of threads.
template <class Product>
void test_rows_apart(const Product& product, Random& random) {
  const std::vector<float> whole = product.run(0, product.rows, 2);
  for (int i = 0; i < 4; ++i) {
    const int64_t begin = draw(random, 0, static_cast<int>(product.rows) - 1);
    const int64_t end =
        i == 0 ? begin + 1 : draw(random, static_cast<int>(begin) + 1, static_cast<int>(product.rows));
    const std::vector<float> part = product.run(begin, end, 1);
    CHECK(std::memcmp(part.data(), whole.data() + begin * product.columns(), part.size() * sizeof(part[0])) ==
          0);
  }
}

}  // namespace tts::test
