// bfloat16 weights through every instruction-set level, meant to run under the sanitizers: arrays end where
// their last element ends. In this build the levels avx512_bf16 and amx run emulated instructions where the
// CPU has AVX-512, so their layout, blocking and sums are seen here and their instructions are not. float32
// weights are in test_step_ops.cpp.
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "cpu/linear.h"
#include "tests/check.h"
#include "tests/levels.h"
#include "tests/linear_products.h"

namespace tts {
namespace {

using test::draw;
using test::Random;

float widened(uint16_t x) {
  const uint32_t bits = uint32_t{x} << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

std::vector<uint16_t> bfloat16_normals(Random& random, int64_t n) {
  std::normal_distribution<float> normal;
  std::vector<uint16_t> values(static_cast<size_t>(n));
  for (uint16_t& value : values) {
    const float x = normal(random);
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof(bits));
    value = static_cast<uint16_t>(bits >> 16);
  }
  return values;
}

std::vector<float> floats(const std::vector<uint16_t>& values) {
  std::vector<float> wide;
  for (uint16_t value : values) wide.push_back(widened(value));
  return wide;
}

// A product of random shape; x is float32 or bfloat16, with values exact in bfloat16.
struct Product {
  int64_t rows, inputs, panels, stride;
  LinearEnd end;
  bool x_is_float, has_bias;
  std::vector<uint16_t> x, weight;
  std::vector<float> wide_x, bias, before;

  explicit Product(Random& random)
      : rows(draw(random, 1, 3) == 1 ? draw(random, 250, 300) : draw(random, 1, 70)),
        inputs(2 * (rows > 70 ? draw(random, 1, 20) : draw(random, 1, 80))),
        panels(draw(random, 1, 3) == 1 ? draw(random, 6, 40) : draw(random, 1, 5)),
        stride(inputs + draw(random, 0, 3)),
        end(static_cast<LinearEnd>(draw(random, 0, 2))),
        x_is_float(draw(random, 0, 1) == 1),
        has_bias(draw(random, 0, 1) == 1) {
    if (end == LinearEnd::kSwiGLU) panels += panels % 2;
    x = bfloat16_normals(random, (rows - 1) * stride + inputs);
    wide_x = floats(x);
    weight = bfloat16_normals(random, 16 * panels * inputs);
    bias = floats(bfloat16_normals(random, 16 * panels));
    before = floats(bfloat16_normals(random, rows * columns()));
  }

  int64_t columns() const { return 16 * panels / (end == LinearEnd::kSwiGLU ? 2 : 1); }

  // Computes rows [begin, end).
  std::vector<float> run(int64_t begin, int64_t row_end, int num_threads) const {
    std::vector<float> out(before.begin() + begin * columns(), before.begin() + row_end * columns());
    if (end != LinearEnd::kAdd) out.assign(out.size(), NAN);
    const void* first = x_is_float ? static_cast<const void*>(wide_x.data() + begin * stride)
                                   : static_cast<const void*>(x.data() + begin * stride);
    const Matrix matrix{FloatPanels{weight.data(), DType::kBFloat16}, panels,
                        has_bias ? bias.data() : nullptr, end == LinearEnd::kSwiGLU};
    multiply({first, x_is_float ? DType::kFloat32 : DType::kBFloat16, row_end - begin, inputs, stride},
             {&matrix, 1}, {out.data(), columns(), end == LinearEnd::kAdd}, num_threads);
    return out;
  }

  double sum(int64_t row, int64_t panel, int64_t j) const {
    double total = has_bias ? double{bias[static_cast<size_t>(16 * panel + j)]} : 0.0;
    for (int64_t i = 0; i < inputs; ++i) {
      const int64_t word = (panel * inputs / 2 + i / 2) * 16 + j;
      total += double{wide_x[static_cast<size_t>(row * stride + i)]} *
               double{widened(weight[static_cast<size_t>(2 * word + i % 2)])};
    }
    return total;
  }
};

void test_against_float64(const Product& product) {
  const std::vector<float> out = product.run(0, product.rows, 2);
  for (int64_t row = 0; row < product.rows; ++row) {
    for (int64_t column = 0; column < product.columns(); ++column) {
      test::check_entry(product, out, row, column);
    }
  }
}

}  // namespace
}  // namespace tts

int main() {
  tts::test::at_each_level(60, [](uint32_t seed) {
    tts::test::Random random(seed);
    const tts::Product product(random);
    tts::test_against_float64(product);
    tts::test::test_rows_apart(product, random);
  });
  return tts::test::failures() == 0 ? 0 : 1;
}
