#include "cpu/sample_tokens.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "common/error.h"
#include "cpu/runtime/isa.h"
#include "cpu/runtime/parallel.h"

namespace tts {
namespace {

constexpr float kLog2E = 1.44269504f;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kLowest = std::numeric_limits<float>::lowest();

// Top-k and top-p look at the tokens within kFirstNats nats of the best one (at temperature 1), then double
// the bound, and past kLastNats look at all tokens.
constexpr double kFirstNats = 2, kLastNats = 64;

using Tokens = std::pair<const RowToken*, const RowToken*>;

Tokens tokens_of_row(const RowToken* tokens, int64_t count, int64_t row) {
  const auto before = [](const RowToken& token, int64_t r) { return token.row < r; };
  const RowToken* begin = std::lower_bound(tokens, tokens + count, row, before);
  return {begin, std::lower_bound(begin, tokens + count, row + 1, before)};
}

// A row keeps the scores above `score`, of which `above` is the lowest, and the scores equal to it from index
// `ties_from` on.
struct Cut {
  float score = -kInfinity;
  float above = kInfinity;
  int64_t ties_from = 0;
};

class Row {
 public:
  Row(const SampleTask& task, int64_t row)
      : task_(task),
        kernels_(cpu_isa().kernels.sampling),
        params_(task.params[row]),
        row_(row),
        vocab_(task.vocab),
        logits_(task.logits + row * task.row_stride) {}

  void run() const {
    thread_local std::vector<float> sums, edited;
    sums.resize(static_cast<size_t>((vocab_ + kSampleBlock - 1) / kSampleBlock));
    const float peak = kernels_.largest(logits_, vocab_);
    const double weighted = kernels_.weigh(logits_, vocab_, peak, kLog2E, -kInfinity, sums.data());
    const double total = std::accumulate(sums.begin(), sums.end(), 0.0);
    const double lse = static_cast<double>(peak) + std::log(total);
    int64_t token = task_.given == nullptr ? 0 : task_.given[row_];
    if (task_.given == nullptr && std::isfinite(lse)) {
      const bool edits = edit(edited);
      const float* scores = edits ? edited.data() : logits_;
      const float best = edits ? kernels_.largest(scores, vocab_) : peak;
      token = params_.temperature == 0.0 ? std::find(scores, scores + vocab_, best) - scores
                                         : draw(scores, best, edits, sums);
    }
    task_.tokens[row_] = token;
    double* numbers = task_.numbers + row_;
    numbers[0] = static_cast<double>(logits_[token]) - lse;
    numbers[task_.rows] = std::log(total) - weighted / total;
    numbers[2 * task_.rows] = lse;
  }

 private:
  // Applies the row's changes, penalty and suppressed tokens to the logits; false if it has none.
  bool edit(std::vector<float>& scores) const {
    const Tokens changed = tokens_of_row(task_.changed, task_.num_changed, row_);
    const bool* forbidden = task_.forbidden == nullptr ? nullptr : task_.forbidden + row_ * vocab_;
    if (forbidden != nullptr && std::find(forbidden, forbidden + vocab_, true) == forbidden + vocab_) {
      forbidden = nullptr;
    }
    const Tokens suppressed = tokens_of_row(task_.suppressed, task_.num_suppressed, row_);
    const Tokens seen = params_.repetition_penalty == 1.0 ? Tokens{nullptr, nullptr}
                                                          : tokens_of_row(task_.seen, task_.num_seen, row_);
    const bool suppresses = suppressed.first != suppressed.second || forbidden != nullptr;
    if (changed.first == changed.second && seen.first == seen.second && !suppresses) return false;
    scores.assign(logits_, logits_ + vocab_);
    for (const RowToken* t = changed.first; t != changed.second; ++t) {
      scores[static_cast<size_t>(t->token)] = task_.values[t - task_.changed];
    }
    const float penalty = static_cast<float>(params_.repetition_penalty);
    for (const RowToken* t = seen.first; t != seen.second; ++t) {
      float& score = scores[static_cast<size_t>(t->token)];
      // An extreme penalty may leave float32's range: 0 / 0 must stay 0.
      score = score < 0 ? score * penalty : score / penalty;
      score = std::isnan(score) ? 0.0f : std::clamp(score, kLowest, -kLowest);
    }
    if (suppresses) {
      // Only the tokens below become -inf, so that a token remains to draw however low its logit is.
      for (float& score : scores) score = std::max(score, kLowest);
      for (const RowToken* t = suppressed.first; t != suppressed.second; ++t) {
        scores[static_cast<size_t>(t->token)] = -kInfinity;
      }
      for (size_t i = 0; forbidden != nullptr && i < scores.size(); ++i) {
        scores[i] = forbidden[i] ? -kInfinity : scores[i];
      }
    }
    return true;
  }

  // sums: sums of the weights at temperature 1, reused unless something changes the weights.
  int64_t draw(const float* scores, float best, bool edits, std::vector<float>& sums) const {
    const float scale = static_cast<float>(std::min(double{kLog2E} / params_.temperature, 1e30));
    if (edits || params_.temperature != 1.0) {
      kernels_.weigh(scores, vocab_, best, scale, -kInfinity, sums.data());
    }
    Cut cut;
    if (params_.top_p < 1.0 || ranks_by_count()) {
      const double total = std::accumulate(sums.begin(), sums.end(), 0.0);
      cut = ranked_cut(scores, best, scale, total);
    }
    if (params_.min_p > 0) {
      const double lowest = double{best} + params_.temperature * std::log(params_.min_p);
      if (static_cast<float>(lowest) > cut.score) cut = {static_cast<float>(lowest)};
    }
    if (cut.score > -kInfinity) weigh_kept(scores, best, scale, cut, sums);
    return inverse_cdf(scores, best, scale, cut, sums);
  }

  // sums: receives the sums of the kept tokens' weights.
  void weigh_kept(const float* scores, float best, float scale, const Cut& cut,
                  std::vector<float>& sums) const {
    const int64_t block = cut.ties_from / kSampleBlock, begin = block * kSampleBlock;
    kernels_.weigh(scores, begin, best, scale, cut.above, sums.data());
    kernels_.weigh(scores + begin, vocab_ - begin, best, scale, cut.score, sums.data() + block);
    if (begin == cut.ties_from) return;
    const int64_t end = std::min<int64_t>(begin + kSampleBlock, vocab_);
    float before, behind;
    kernels_.weigh(scores + begin, cut.ties_from - begin, best, scale, cut.above, &before);
    kernels_.weigh(scores + cut.ties_from, end - cut.ties_from, best, scale, cut.score, &behind);
    sums[static_cast<size_t>(block)] = before + behind;
  }

  // The first token at which the running sum of weights exceeds uniform * total; if rounding leaves none, the
  // last token with a weight.
  int64_t inverse_cdf(const float* scores, float best, float scale, const Cut& cut,
                      const std::vector<float>& sums) const {
    const double total = std::accumulate(sums.begin(), sums.end(), 0.0);
    double below = 0;
    const double target = params_.uniform * total;
    size_t block = 0, last = 0;
    double running = 0;
    for (; block < sums.size(); ++block) {
      if (sums[block] > 0) last = block;
      below = running;
      running += static_cast<double>(sums[block]);
      if (running > target) break;
    }
    if (block == sums.size()) {
      block = last;
      below = total;
    }
    float w[kSampleBlock];
    const int64_t begin = static_cast<int64_t>(block) * kSampleBlock;
    const int64_t count = std::min<int64_t>(kSampleBlock, vocab_ - begin);
    kernels_.weights(scores + begin, count, best, scale, cut.score, w);
    int64_t chosen = 0;
    for (int64_t i = 0; i < count; ++i) {
      if (w[i] <= 0 || (begin + i < cut.ties_from && scores[begin + i] == cut.score)) continue;
      chosen = i;
      below += static_cast<double>(w[i]);
      if (below > target) break;
    }
    return begin + chosen;
  }

  // The cut after top-k, then top-p. total: weight of all tokens.
  Cut ranked_cut(const float* scores, float best, float scale, double total) const {
    // Few tokens matter: take those within a few nats of the best, and more if they do not suffice.
    thread_local std::vector<float> top;
    const auto k = static_cast<size_t>(ranks_by_count() ? params_.top_k : 0);
    for (double nats = kFirstNats;; nats *= 2) {
      const double bound = double{best} - nats * params_.temperature;
      const bool all = nats > kLastNats || bound < double{kLowest};
      collect(scores, all ? -kInfinity : static_cast<float>(bound), top);
      if (all) break;
      if (k > 0 && top.size() >= k) break;
      if (k == 0 && mass(top.data(), top.size(), best, scale) >= needed(total)) break;
    }
    if (k > 0) {
      std::nth_element(top.begin(), top.begin() + (k - 1), top.end(), std::greater<float>());
      const float lowest = top[k - 1];
      if (params_.top_p >= 1.0) return {lowest};
      const auto ties = std::partition(top.begin() + k, top.end(), [=](float s) { return s == lowest; });
      top.erase(ties, top.end());
      total = mass(top.data(), top.size(), best, scale);
    }
    return mass_cut(scores, top, best, scale, needed(total));
  }

  // Keeps the best scores in order while the weight of those already kept is less than `needed`; among equal
  // scores, the last in the vocabulary comes first.
  Cut mass_cut(const float* scores, std::vector<float>& top, float best, float scale, double needed) const {
    float *begin = top.data(), *end = begin + top.size();
    while (end - begin > 32) {
      float* middle = begin + (end - begin) / 2;
      std::nth_element(begin, middle, end, std::greater<float>());
      const double upper = mass(begin, static_cast<size_t>(middle - begin), best, scale);
      if (upper >= needed) {
        end = middle;
      } else {
        needed -= upper;
        begin = middle;
      }
    }
    const float* const sorted = begin;
    std::sort(begin, end, std::greater<float>());
    Cut cut{*begin};
    for (; begin < end && needed > 0; ++begin) {
      cut.score = *begin;
      needed -= mass(begin, 1, best, scale);
    }
    // Everything kept is before `begin`, and nothing after it is greater.
    if (begin < end && *begin < cut.score) return cut;
    const int64_t dropped = std::count(begin, top.data() + top.size(), cut.score);
    if (dropped == 0) return cut;
    for (const float* kept = begin; kept-- > top.data();) {
      if (*kept > cut.score) cut.above = std::min(cut.above, *kept);
      if (kept >= sorted && cut.above < kInfinity) break;
    }
    cut.ties_from = behind_ties(scores, cut.score, dropped);
    return cut;
  }

  // The index after the first `count` scores equal to `score`.
  int64_t behind_ties(const float* scores, float score, int64_t count) const {
    int64_t i = 0;
    for (; i + kSampleBlock <= vocab_; i += kSampleBlock) {
      int found = 0;
      for (int j = 0; j < kSampleBlock; ++j) found += scores[i + j] == score ? 1 : 0;
      if (found >= count) break;
      count -= found;
    }
    for (; count > 0; ++i) count -= scores[i] == score ? 1 : 0;
    return i;
  }

  bool ranks_by_count() const { return params_.top_k > 0 && params_.top_k < double(vocab_); }

  double needed(double total) const { return params_.top_p * total; }

  // Sum of the weights of n scores.
  double mass(const float* scores, size_t n, float best, float scale) const {
    thread_local std::vector<float> sums;
    sums.resize((n + kSampleBlock - 1) / kSampleBlock);
    kernels_.weigh(scores, static_cast<int64_t>(n), best, scale, -kInfinity, sums.data());
    return std::accumulate(sums.begin(), sums.end(), 0.0);
  }

  // Collects the scores >= `bound`.
  void collect(const float* scores, float bound, std::vector<float>& found) const {
    found.resize(static_cast<size_t>(vocab_));
    size_t count = 0;
    constexpr int64_t kRun = 32;
    for (int64_t begin = 0; begin < vocab_; begin += kRun) {
      const int64_t end = std::min(begin + kRun, vocab_);
      int any = 0;
      for (int64_t i = begin; i < end; ++i) any |= scores[i] >= bound ? 1 : 0;
      if (any == 0) continue;
      for (int64_t i = begin; i < end; ++i) {  // branchless, because a branch would be unpredictable
        found[count] = scores[i];
        count += scores[i] >= bound ? 1 : 0;
      }
    }
    found.resize(count);
  }

  const SampleTask& task_;
  const SampleKernels& kernels_;
  const SampleParams& params_;
  const int64_t row_, vocab_;
  const float* logits_;
};

void check_tokens(const char* name, const RowToken* tokens, int64_t count, int64_t rows, int64_t vocab) {
  for (int64_t i = 0; i < count; ++i) {
    require(tokens[i].row >= (i > 0 ? tokens[i - 1].row : 0) && tokens[i].row < rows, name, "[", i,
            "]: got row ", tokens[i].row, ", expected ascending rows below ", rows);
    require(tokens[i].token >= 0 && tokens[i].token < vocab, name, "[", i, "]: got token ", tokens[i].token,
            ", expected 0 <= token < ", vocab);
  }
}

void check_params(const SampleTask& task) {
  for (int64_t row = 0; row < task.rows; ++row) {
    const SampleParams& p = task.params[row];
    const auto check = [row](const char* name, double value, bool fits, const char* expected) {
      require(fits, "params[", row, "]: got ", name, " ", value, ", expected ", expected);
    };
    check("temperature", p.temperature, p.temperature >= 0 && std::isfinite(p.temperature), "0 or more");
    const bool whole = p.top_k >= 0 && p.top_k < 0x1p53 && p.top_k == std::floor(p.top_k);
    check("top_k", p.top_k, whole, "a whole number, 0 or more");
    check("top_p", p.top_p, p.top_p > 0 && p.top_p <= 1, "0 < top_p <= 1");
    check("min_p", p.min_p, p.min_p >= 0 && p.min_p <= 1, "0 <= min_p <= 1");
    check("repetition_penalty", p.repetition_penalty,
          p.repetition_penalty > 0 && std::isfinite(p.repetition_penalty), "a positive number");
    check("uniform", p.uniform, p.uniform >= 0 && p.uniform < 1, "0 <= uniform < 1");
  }
}

}  // namespace

void sample_tokens(const SampleTask& task, int num_threads) {
  check_params(task);
  check_tokens("seen", task.seen, task.num_seen, task.rows, task.vocab);
  check_tokens("suppressed", task.suppressed, task.num_suppressed, task.rows, task.vocab);
  check_tokens("changed", task.changed, task.num_changed, task.rows, task.vocab);
  for (int64_t i = 0; i < task.num_changed; ++i) {
    require(task.values[i] < kInfinity, "values[", i, "]: got ", task.values[i],
            ", expected a number or -inf");
  }
  for (int64_t row = 0; task.given != nullptr && row < task.rows; ++row) {
    require(task.given[row] >= 0 && task.given[row] < task.vocab, "given[", row, "]: got ", task.given[row],
            ", expected 0 <= token < ", task.vocab);
  }
  parallel_for(num_threads, task.rows, [&](int64_t row) { Row(task, row).run(); });
}

}  // namespace tts
