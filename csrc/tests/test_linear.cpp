// Weights of any kinds side by side give the same bits as each alone, at every instruction-set level; meant
// to run under the sanitizers. test_packed_linear.cpp and test_quantised_linear.cpp test single weights.
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "common/error.h"
#include "cpu/linear.h"
#include "tests/check.h"
#include "tests/levels.h"
#include "tests/random_quantised.h"

namespace tts {
namespace {

using test::draw;
using test::Random;

// A weight of any kind, and its memory.
struct Weight {
  std::vector<uint8_t> bytes;
  std::vector<float> bias;
  std::vector<int32_t> order;
  Matrix matrix;

  Weight(Random& random, int64_t inputs, bool quantised) {
    const int64_t panels = draw(random, 1, 12);
    std::normal_distribution<float> normal;
    bias.resize(static_cast<size_t>(16 * panels));
    for (float& value : bias) value = normal(random);
    const float* const added = draw(random, 0, 1) == 1 ? bias.data() : nullptr;
    if (quantised) {
      const QuantForm form = test::random_form(random);
      bytes = test::random_panels(random, form, panels, inputs);
      Random of_order(static_cast<uint32_t>(draw(random, 0, 3)));  // few, so that weights share one
      order = test::random_order(of_order, inputs);
      matrix = {QuantPanels{bytes.data(), form, test::blocks_of(form, inputs), false, test::order_at(order)},
                panels, added};
      return;
    }
    const bool bfloat16 = draw(random, 0, 1) == 1;
    bytes.resize(static_cast<size_t>(16 * panels * inputs * (bfloat16 ? 2 : 4)));
    for (size_t i = 0; i < bytes.size(); i += bfloat16 ? 2 : 4) {
      const float value = normal(random);
      std::memcpy(&bytes[i], reinterpret_cast<const char*>(&value) + (bfloat16 ? 2 : 0), bfloat16 ? 2 : 4);
    }
    matrix = {FloatPanels{bytes.data(), bfloat16 ? DType::kBFloat16 : DType::kFloat32}, panels, added};
  }
};

void test_side_by_side(uint32_t seed) {
  Random random(seed);
  const int64_t rows = draw(random, 1, 4) == 1 ? draw(random, 100, 300) : draw(random, 1, 20),
                inputs = 32 * draw(random, 1, 9), stride = inputs + 2 * draw(random, 0, 3);
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<size_t>((rows - 1) * stride + inputs));
  for (float& value : x) value = normal(random);
  std::vector<Weight> weights;
  std::vector<Matrix> matrices;
  for (int i = draw(random, 1, 4); i > 0; --i) weights.emplace_back(random, inputs, draw(random, 0, 2) > 0);
  for (const Weight& weight : weights) matrices.push_back(weight.matrix);
  const LinearRows all{x.data(), DType::kFloat32, rows, inputs, stride};
  const int64_t width = columns(matrices);
  std::vector<float> out(static_cast<size_t>(rows * width), NAN);
  multiply(all, matrices, {out.data(), width, false}, 3);
  int64_t column = 0;
  for (const Matrix& matrix : matrices) {
    const int64_t own = columns(matrix);
    std::vector<float> alone(static_cast<size_t>(rows * own), NAN);
    multiply(all, {&matrix, 1}, {alone.data(), own, false}, 1);
    for (int64_t row = 0; row < rows; ++row) {
      CHECK(std::memcmp(alone.data() + row * own, out.data() + row * width + column,
                        static_cast<size_t>(own) * sizeof(float)) == 0);
    }
    column += own;
  }
}

// Sizes that do not fit are rejected before anything is written, in the last part too.
void test_misfits() {
  Random random(1);
  const Weight good(random, 64, true), other(random, 64 + 256, true);
  const std::vector<float> x(64, 1.0f);
  std::vector<float> out(1000, 7.0f);
  const Matrix weights[] = {good.matrix, other.matrix};
  const LinearRows rows{x.data(), DType::kFloat32, 1, 64, 64};
  CHECK_THROWS(multiply(rows, weights, {out.data(), 1000, false}, 1), ArgumentError);
  for (const int32_t outside : {-1, 64}) {
    std::vector<int32_t> order(64, 5);
    order[40] = outside;
    Matrix disordered = good.matrix;
    for (const bool exact : {false, true}) {
      auto& panels = std::get<QuantPanels>(disordered.panels);
      panels.order = order.data();
      panels.exact = exact;
      CHECK_THROWS(multiply(rows, {&disordered, 1}, {out.data(), 1000, false}, 1), ArgumentError);
    }
  }
  Matrix gated = good.matrix;
  gated.gated = true;
  gated.num_panels = 3;
  CHECK_THROWS(multiply(rows, {&gated, 1}, {out.data(), 1000, false}, 1), ArgumentError);
  gated.num_panels = 2;
  CHECK_THROWS(multiply(rows, {&gated, 1}, {out.data(), 1000, true}, 1), ArgumentError);
  for (float value : out) CHECK(value == 7.0f);
}

}  // namespace
}  // namespace tts

int main() {
  tts::test::at_each_level(60, tts::test_side_by_side);
  tts::test_misfits();
  return tts::test::failures() == 0 ? 0 : 1;
}
