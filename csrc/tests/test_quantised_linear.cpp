// Quantised weights of every form through every instruction-set level, meant to run under the sanitizers:
// arrays end where their last element ends. In this build the level avx512_vnni runs an emulated instruction.
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "cpu/linear.h"
#include "cpu/quantised_linear.h"
#include "tests/check.h"
#include "tests/levels.h"
#include "tests/linear_products.h"
#include "tests/random_quantised.h"

namespace tts {
namespace {

using test::draw;
using test::Random;

float widened(uint16_t bits, bool bfloat16) {
  if (bfloat16) {
    const uint32_t word = uint32_t{bits} << 16;
    float x;
    std::memcpy(&x, &word, sizeof(x));
    return x;
  }
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const double size = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return static_cast<float>(bits >> 15 ? -size : size);
}

// A product of random shape, over random bytes except for the scales.
struct Product {
  QuantForm form;
  QuantLayout layout;
  int64_t rows, inputs, panels, stride, blocks;
  LinearEnd end;
  bool has_bias, exact;
  std::vector<uint8_t> weight;
  std::vector<int32_t> order;
  std::vector<float> x, bias, before;

  explicit Product(Random& random)
      : form(test::random_form(random)),
        layout(quant_layout(form)),
        rows(draw(random, 1, 4) == 1 ? draw(random, 100, 300) : draw(random, 1, 20)),
        inputs(32 * (rows > 20 ? draw(random, 1, 4) : draw(random, 1, 20))),
        panels(draw(random, 1, rows > 20 ? 3 : 9)),
        stride(inputs + draw(random, 0, 3)),
        blocks(test::blocks_of(form, inputs)),
        end(static_cast<LinearEnd>(draw(random, 0, 2))),
        has_bias(draw(random, 0, 1) == 1),
        exact(draw(random, 0, 3) == 0) {
    if (end == LinearEnd::kSwiGLU) panels += panels % 2;
    weight = test::random_panels(random, form, panels, inputs);
    order = test::random_order(random, inputs);
    std::normal_distribution<float> normal;
    x.resize(static_cast<size_t>((rows - 1) * stride + inputs));
    for (float& value : x) value = normal(random);
    bias.resize(static_cast<size_t>(16 * panels));
    for (float& value : bias) value = normal(random);
    before.resize(static_cast<size_t>(rows * columns()));
    for (float& value : before) value = normal(random);
  }

  int64_t columns() const { return 16 * panels / (end == LinearEnd::kSwiGLU ? 2 : 1); }

  // Computes rows [begin, end).
  std::vector<float> run(int64_t begin, int64_t row_end, int num_threads) const {
    std::vector<float> out(before.begin() + begin * columns(), before.begin() + row_end * columns());
    if (end != LinearEnd::kAdd) out.assign(out.size(), NAN);
    const Matrix matrix{QuantPanels{weight.data(), form, blocks, exact, test::order_at(order)}, panels,
                        has_bias ? bias.data() : nullptr, end == LinearEnd::kSwiGLU};
    multiply({x.data() + begin * stride, DType::kFloat32, row_end - begin, inputs, stride}, {&matrix, 1},
             {out.data(), columns(), end == LinearEnd::kAdd}, num_threads);
    return out;
  }

  // The scale or minimum of a group of an output.
  double number(const uint8_t* block, int at, int factor, int64_t group, int64_t lane) const {
    const int64_t i = group * 16 + lane;
    if (form.scales == QuantScales::kTwoLevel) {
      float shared;
      std::memcpy(&shared, block + 64 * factor + 4 * lane, sizeof(shared));
      return double{shared} * static_cast<int8_t>(block[at + i]);
    }
    if (form.scales == QuantScales::kFloat32) {
      float scale;
      std::memcpy(&scale, block + at + 4 * i, sizeof(scale));
      return scale;
    }
    uint16_t half;
    std::memcpy(&half, block + at + 2 * i, sizeof(half));
    return widened(half, form.scales == QuantScales::kBFloat16);
  }

  double weight_at(int64_t panel, int64_t lane, int64_t input) const {
    const uint8_t* const block = weight.data() + (panel * blocks + input / layout.inputs) * layout.bytes;
    const int64_t inside = input % layout.inputs, word = inside % 64 / 4, byte = lane * 4 + inside % 4;
    const uint8_t* const planes = block + layout.planes_at + inside / 64 * layout.plane_bytes;
    int u = 0;
    if (form.bits == 8) {
      u = planes[word * 64 + byte];
    } else {
      u = planes[word % 8 * 64 + byte] >> (word < 8 ? 0 : 4) & 15;
      const uint8_t* const high = planes + 512;
      if (form.bits == 5) u |= (high[word / 8 * 64 + byte] >> (word % 8) & 1) << 4;
      if (form.bits == 6) u |= (high[word / 4 * 64 + byte] >> (2 * (word % 4)) & 3) << 4;
    }
    if (form.has_table) u = form.table[u];
    const int64_t group = inside / form.group;
    const double least = form.has_min ? number(block, layout.mins_at, 1, group, lane) : 0.0;
    if (form.has_zeros) u -= static_cast<int8_t>(block[layout.mins_at + group * 16 + lane]);
    return (u - form.offset) * number(block, layout.scales_at, 0, group, lane) + least;
  }

  // The element of x that input i of the panels is multiplied with.
  float x_at(int64_t row, int64_t i) const {
    const int64_t input = order.empty() ? i : order[static_cast<size_t>(i)];
    return x[static_cast<size_t>(row * stride + input)];
  }

  // The element as the product reads it: rounded to 8 bits, or unchanged.
  double seen(int64_t row, int64_t input) const {
    if (exact) return x_at(row, input);
    float most = 0.0f;
    for (int64_t i = 0; i < 32; ++i) most = std::max(most, std::abs(x_at(row, input / 32 * 32 + i)));
    return std::nearbyint(x_at(row, input) * (127.0f / most)) * double{most / 127.0f};
  }

  double sum(int64_t row, int64_t panel, int64_t lane) const {
    double total = has_bias ? double{bias[static_cast<size_t>(16 * panel + lane)]} : 0.0;
    for (int64_t i = 0; i < inputs; ++i) total += seen(row, i) * weight_at(panel, lane, i);
    return total;
  }
};

void test_against_float64(const Product& product, Random& random) {
  const std::vector<float> out = product.run(0, product.rows, 2);
  for (int i = 0; i < 60; ++i) {
    const int64_t row = draw(random, 0, static_cast<int>(product.rows) - 1);
    const int64_t column = draw(random, 0, static_cast<int>(product.columns()) - 1);
    test::check_entry(product, out, row, column);
  }
}

}  // namespace
}  // namespace tts

int main() {
  tts::test::at_each_level(60, [](uint32_t seed) {
    tts::test::Random random(seed);
    const tts::Product product(random);
    tts::test_against_float64(product, random);
    tts::test::test_rows_apart(product, random);
  });
  return tts::test::failures() == 0 ? 0 : 1;
}
