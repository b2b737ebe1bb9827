// The products and row operations of a decode step through every instruction-set level, meant to run under
// the sanitizers: arrays end where their last element ends. bfloat16 weights are in
// test_packed_linear.cpp; the comparison over all shapes is in tests/kernels/test_packed_linear.py,
// tests/kernels/test_row_ops.py and tests/kernels/test_decoder_layers.py.
#include <cmath>
#include <deque>
#include <random>
#include <vector>

#include "cpu/decoder_layers.h"
#include "cpu/linear.h"
#include "cpu/row_ops.h"
#include "tests/check.h"
#include "tests/levels.h"
#include "tests/random_quantised.h"

namespace tts {
namespace {

using test::draw;
using test::Random;

std::vector<float> normals(Random& random, int64_t n) {
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(n));
  for (float& value : values) value = normal(random);
  return values;
}

void test_linear(uint32_t seed) {
  Random random(seed);
  const int64_t rows = draw(random, 1, 110), inputs = draw(random, 1, 150), panels = 2 * draw(random, 1, 5);
  const bool gated = draw(random, 0, 1) == 1;
  const int64_t outputs = 16 * panels, columns = gated ? outputs / 2 : outputs;
  const std::vector<float> x = normals(random, rows * inputs), weight = normals(random, outputs * inputs),
                           bias = normals(random, outputs);
  std::vector<float> out(static_cast<size_t>(rows * columns), NAN);
  const Matrix matrix{FloatPanels{weight.data(), DType::kFloat32}, panels, bias.data(), gated};
  multiply({x.data(), DType::kFloat32, rows, inputs, inputs}, {&matrix, 1}, {out.data(), columns, false}, 2);
  const auto sum = [&](int64_t row, int64_t panel, int64_t j) {
    double total = double{bias[static_cast<size_t>(16 * panel + j)]};
    for (int64_t i = 0; i < inputs; ++i) {
      total += double{x[static_cast<size_t>(row * inputs + i)]} *
               double{weight[static_cast<size_t>((panel * inputs + i) * 16 + j)]};
    }
    return total;
  };
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = 0; column < columns; ++column) {
      const int64_t panel = column / 16, j = column % 16;
      double expected = sum(row, panel, j);
      if (gated) {
        const double gate = sum(row, 2 * panel, j);
        expected = gate / (1 + std::exp(-gate)) * sum(row, 2 * panel + 1, j);
      }
      CHECK(std::abs(double{out[static_cast<size_t>(row * columns + column)]} - expected) <
            1e-4 * (1 + std::abs(expected)));
    }
  }
}

void test_rows(uint32_t seed) {
  Random random(seed);
  const int64_t rows = draw(random, 1, 9), n = draw(random, 1, 80);
  const std::vector<float> x = normals(random, rows * n), weight = normals(random, n);
  std::vector<float> out(static_cast<size_t>(rows * n));
  norm_rows({x.data(), n, {weight.data(), false}, rows, n, 1e-5f, out.data(), n}, 2);
  for (float value : out) CHECK(std::isfinite(value));

  const int q_heads = draw(random, 1, 4), kv_heads = draw(random, 1, 2), d = 16 * draw(random, 2, 6);
  const std::vector<float> qkv = normals(random, rows * (q_heads + 2 * kv_heads) * d);
  const std::vector<float> angles = normals(random, rows * d), norm = normals(random, d);
  std::vector<uint16_t> q(static_cast<size_t>(rows * q_heads * d)),
      k(static_cast<size_t>(rows * kv_heads * d)), v(k.size());
  rotate_qkv(
      {qkv.data(), rows, (q_heads + 2 * kv_heads) * d, q_heads, kv_heads, d, angles.data(), angles.data(),
       norm.data(), nullptr, 1e-5f, DType::kBFloat16, q.data(), k.data(), v.data(), d, false},
      2);
  std::vector<float> q32(q.size()), k32(k.size()), v32(v.size());
  rotate_qkv(
      {qkv.data(), rows, (q_heads + 2 * kv_heads) * d, q_heads, kv_heads, d, angles.data(), angles.data(),
       norm.data(), nullptr, 1e-5f, DType::kFloat32, q32.data(), k32.data(), v32.data(), d, false},
      1);
  CHECK(v32[0] == qkv[static_cast<size_t>((q_heads + kv_heads) * d)]);
}

// Owns weights of random kinds.
class Weights {
 public:
  explicit Weights(Random& random) : random_(random) {}

  Matrix make(int64_t outputs, int64_t inputs, bool gated = false) {
    const int64_t panels = outputs / 16;
    if (draw(random_, 0, 1) == 0) {
      floats_.push_back(normals(random_, outputs * inputs));
      return {FloatPanels{floats_.back().data(), DType::kFloat32}, panels, nullptr, gated};
    }
    const QuantForm form = test::random_form(random_);
    bytes_.push_back(test::random_panels(random_, form, panels, inputs));
    return {QuantPanels{bytes_.back().data(), form, test::blocks_of(form, inputs)}, panels, nullptr, gated};
  }

 private:
  Random& random_;
  std::deque<std::vector<float>> floats_;
  std::deque<std::vector<uint8_t>> bytes_;
};

// One token per branch, each alone on its page, so a query sees only its own value.
void test_layers(uint32_t seed) {
  Random random(seed);
  const int tokens = draw(random, 1, 7), kv_heads = draw(random, 1, 2),
            q_heads = kv_heads * draw(random, 1, 3), d = 32 * draw(random, 1, 2);
  const int64_t hidden = 32 * draw(random, 1, 3), mlp = 32 * draw(random, 1, 4);
  Weights weights(random);
  const std::vector<float> norm = normals(random, hidden), angles = normals(random, tokens * d);
  // Norms of both kinds, before and after; a gate of each kind.
  const std::vector<float> layer_norm = normals(random, 2 * hidden), whole = normals(random, q_heads * d);
  const Norm rms{norm.data(), false}, centred{layer_norm.data(), true};
  const bool other = seed % 2 == 1;
  const std::vector<Matrix> halves{weights.make(mlp, hidden), weights.make(mlp, hidden)},
      gated{weights.make(2 * mlp, hidden, true)};
  const Experts experts{.router = weights.make(16, hidden),
                        .gate_up = {gated, halves, gated},
                        .down = {3, weights.make(hidden, mlp)},
                        .top_k = 2,
                        .normalised = other};
  const DecoderLayer layer{.input_norm = other ? centred : rms,
                           .mlp_norm = rms,
                           .out_norm = other ? rms : Norm{},
                           .mlp_out_norm = other ? centred : Norm{},
                           .head_norms = {other ? whole.data() : nullptr, nullptr, other},
                           .qkv = {weights.make(q_heads * d, hidden), weights.make(kv_heads * d, hidden),
                                   weights.make(kv_heads * d, hidden)},
                           .gate_up = other ? halves : gated,
                           .o = weights.make(hidden, q_heads * d),
                           .down = weights.make(hidden, mlp),
                           .rotary = {0, other},
                           .attention = {0.1f, other ? 5.0f : 0.0f, 0},
                           .activation = other ? Activation::kGeluTanh : Activation::kSilu,
                           .has_gate = true,
                           .parallel = seed % 3 == 0,
                           .factor = other ? 0.5f : 1.0f,
                           .experts = seed % 5 == 0 ? std::optional(experts) : std::nullopt};
  const int64_t page = int64_t{kPageSize} * d, stride = tokens * kv_heads * page;
  std::vector<float> k(static_cast<size_t>(2 * stride)), v(k.size());
  const KVView kv{k.data(), v.data(), kv_heads * page, page,   kv_heads * page, page, tokens,
                  kv_heads, d,        DType::kFloat32, nullptr};
  std::vector<int32_t> order, position, slots, pages;
  std::vector<QueryBlock> blocks;
  std::vector<Segment> segments;
  for (int32_t i = 0; i < tokens; ++i) {
    order.push_back(i);
    position.push_back(0);
    slots.push_back(i * kPageSize);
    pages.push_back(i);
    segments.push_back({i, 0, 1, i, i + 1});
    blocks.push_back({i, i + 1, i, i + 1});
  }
  const PlanView plan{order.data(), position.data(), blocks.data(), segments.data(), pages.data(),
                      tokens,       tokens,          tokens,        tokens};
  std::vector<float> x = normals(random, tokens * hidden), alone(x.begin(), x.begin() + hidden);
  const Decoder decoder{{hidden, q_heads, kv_heads, d, other ? d / 2 : d, 1e-5f}, {layer, layer}, {}, {}};
  const DecoderStep step{{angles.data(), angles.data(), 1},
                         DType::kFloat32,
                         kv,
                         stride,
                         stride,
                         {nullptr, 0},
                         slots.data(),
                         plan,
                         nullptr};
  run_decoder(decoder, step, x.data(), {}, 2);
  for (float value : x) CHECK(std::isfinite(value));
  DecoderStep first = step;
  first.plan.num_queries = first.plan.num_blocks = first.plan.num_segments = first.plan.num_pages = 1;
  run_decoder(decoder, first, alone.data(), {}, 1);
  for (size_t i = 0; i < alone.size(); ++i) CHECK(alone[i] == x[i]);
}

}  // namespace
}  // namespace tts

int main() {
  tts::test::at_each_level(100, [](uint32_t seed) {
    tts::test_linear(seed);
    tts::test_rows(seed);
    tts::test_layers(seed);
  });
  return tts::test::failures() == 0 ? 0 : 1;
}
