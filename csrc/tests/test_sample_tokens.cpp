// Random rows through every instruction-set level, meant to run under the sanitizers: logits end where their
// last row ends. The comparison with the specification is in tests/kernels/test_sample_tokens.py.
#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "common/error.h"
#include "cpu/sample_tokens.h"
#include "tests/check.h"
#include "tests/levels.h"

namespace tts {
namespace {

using Random = std::mt19937;

int draw(Random& random, int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); }

// Checks each token's top-k rank and probability; without top-p, min-p and ties.
void test_rows(uint32_t seed) {
  Random random(seed);
  const int rows = draw(random, 1, 5), vocab = draw(random, 1, 700), top_k = draw(random, 0, 9);
  std::normal_distribution<float> normal(0.0f, 3.0f);
  std::vector<float> logits(static_cast<size_t>(rows * vocab));
  for (float& logit : logits) logit = normal(random);
  std::vector<SampleParams> params;
  std::vector<RowToken> suppressed;
  for (int row = 0; row < rows; ++row) {
    const double uniform = std::uniform_real_distribution<double>(0, 1)(random);
    params.push_back({0.8, double(top_k), draw(random, 0, 1) ? 1.0 : 0.9, 0.01, 1.0, uniform});
    if (vocab > 1 && draw(random, 0, 1)) suppressed.push_back({row, draw(random, 0, vocab - 1)});
  }
  std::vector<int64_t> tokens(static_cast<size_t>(rows));
  std::vector<double> numbers(static_cast<size_t>(3 * rows));
  SampleTask task{logits.data(),
                  rows,
                  vocab,
                  vocab,
                  params.data(),
                  nullptr,
                  0,
                  suppressed.data(),
                  static_cast<int64_t>(suppressed.size()),
                  nullptr,
                  tokens.data(),
                  numbers.data()};
  sample_tokens(task, 2);
  for (int row = 0; row < rows; ++row) {
    const float* x = logits.data() + row * vocab;
    const int64_t token = tokens[static_cast<size_t>(row)];
    CHECK(token >= 0 && token < vocab);
    double total = 0;
    for (int t = 0; t < vocab; ++t) total += std::exp(double{x[t]});
    CHECK(std::abs(numbers[static_cast<size_t>(row)] - (double{x[token]} - std::log(total))) < 1e-5);
    int better = 0;
    for (int t = 0; t < vocab; ++t) {
      const bool out = std::any_of(suppressed.begin(), suppressed.end(),
                                   [&](RowToken s) { return s.row == row && s.token == t; });
      CHECK(!out || t != token);
      better += !out && x[t] > x[token];
    }
    CHECK(top_k == 0 || better < top_k);
  }
  suppressed.assign(1, {0, vocab});
  task.suppressed = suppressed.data();
  task.num_suppressed = 1;
  CHECK_THROWS(sample_tokens(task, 1), ArgumentError);
}

// With few distinct logits: tokens tied at the k-th all stay, then top-p drops the first of those tied at its
// cut.
void test_ties(uint32_t seed) {
  Random random(seed);
  const int vocab = draw(random, 1, 1100), top_k = draw(random, 0, 1) * draw(random, 0, vocab);
  std::vector<float> logits(static_cast<size_t>(vocab));
  for (float& logit : logits) logit = static_cast<float>(draw(random, 0, 3));
  const auto uniform = [&] { return std::uniform_real_distribution<double>(0, 1)(random); };
  const double top_p = 1 - 0.99 * uniform();
  std::vector<int> ranked(logits.size());
  std::iota(ranked.begin(), ranked.end(), 0);
  const auto logit = [&](int token) { return logits[static_cast<size_t>(token)]; };
  std::sort(ranked.begin(), ranked.end(),
            [&](int a, int b) { return logit(a) != logit(b) ? logit(a) > logit(b) : a > b; });
  if (top_k > 0) {
    const float least = logit(ranked[static_cast<size_t>(top_k - 1)]);
    while (logit(ranked.back()) < least) ranked.pop_back();
  }
  double total = 0, before = 0;
  for (const int token : ranked) total += std::exp(double{logit(token)});
  std::vector<int> kept;
  for (const int token : ranked) {
    if (before < top_p * total) kept.push_back(token);
    if (std::abs(before - top_p * total) < 1e-5 * total) return;  // too close to call
    before += std::exp(double{logit(token)});
  }
  for (int i = 0; i < 20; ++i) {
    const SampleParams params{1.0, double(top_k), top_p, 0.0, 1.0, i == 0 ? 0.0 : uniform()};
    int64_t token = 0;
    double numbers[3];
    sample_tokens({logits.data(), 1, vocab, vocab, &params, nullptr, 0, nullptr, 0, nullptr, &token, numbers},
                  1);
    CHECK(std::find(kept.begin(), kept.end(), token) != kept.end());
    CHECK(i > 0 || token == *std::min_element(kept.begin(), kept.end()));
  }
}

// The drawn token has the greatest logit, a changed one; if that is forbidden, the greatest of the others.
void test_changes(uint32_t seed) {
  Random random(seed);
  const int rows = draw(random, 1, 5), vocab = draw(random, 2, 700);
  const std::vector<float> logits(static_cast<size_t>(rows * vocab), 0.5f);
  const std::vector<SampleParams> params(static_cast<size_t>(rows), {0.0, 0.0, 1.0, 0.0, 1.0, 0.5});
  std::vector<RowToken> changed;
  std::vector<float> values;
  const auto forbidden = std::make_unique<bool[]>(logits.size());
  for (int row = 0; row < rows; ++row) {
    changed.push_back({row, draw(random, 0, vocab - 1)});
    values.push_back(draw(random, 0, 1) ? 9.0f : 0.75f);
    forbidden[static_cast<size_t>(row * vocab + changed.back().token)] = draw(random, 0, 1) == 1;
  }
  std::vector<int64_t> tokens(static_cast<size_t>(rows));
  std::vector<double> numbers(static_cast<size_t>(3 * rows));
  SampleTask task{logits.data(), rows, vocab,   vocab,         params.data(), nullptr, 0,
                  nullptr,       0,    nullptr, tokens.data(), numbers.data()};
  task.changed = changed.data();
  task.values = values.data();
  task.num_changed = rows;
  task.forbidden = forbidden.get();
  sample_tokens(task, 2);
  for (size_t row = 0; row < tokens.size(); ++row) {
    const int64_t token = changed[row].token;
    const bool out = forbidden[row * static_cast<size_t>(vocab) + static_cast<size_t>(token)];
    CHECK(tokens[row] == (!out ? token : token == 0 ? 1 : 0));
    CHECK(std::abs(numbers[row] + std::log(double(vocab))) < 1e-5);
  }
  values.back() = std::nanf("");
  CHECK_THROWS(sample_tokens(task, 1), ArgumentError);
  values.back() = 0;
  changed.back().row = rows;
  CHECK_THROWS(sample_tokens(task, 1), ArgumentError);
}

}  // namespace
}  // namespace tts

int main() {
  tts::test::at_each_level(300, [](uint32_t seed) {
    tts::test_rows(seed);
    tts::test_ties(seed);
    tts::test_changes(seed);
  });
  return tts::test::failures() == 0 ? 0 : 1;
}
