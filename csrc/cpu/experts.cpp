#include "cpu/experts.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "cpu/linear.h"
#include "cpu/row_ops.h"
#include "cpu/runtime/isa.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/scratch.h"

namespace tts {
namespace {

// Rows of experts multiplied together: enough that threads rarely wait for each other, few enough that the
// data between two products stays in the cache.
constexpr size_t kTogether = 64;
constexpr int64_t kSmall = 1 << 15;  // below this many floats, waking threads costs more than the work
constexpr int64_t kBand = 256;       // channels that a thread sums at once

struct Route {
  int64_t row;
  float weight;
};

// Chooses a row's experts by descending logit; equal logits keep the experts' order.
void choose(const float* logits, int num_experts, int top_k, std::vector<int64_t>& order) {
  order.resize(static_cast<size_t>(num_experts));
  std::iota(order.begin(), order.end(), int64_t{0});
  std::partial_sort(order.begin(), order.begin() + top_k, order.end(), [&](int64_t a, int64_t b) {
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
  });
}

// Adds a row to the lists of its experts.
void route(const Experts& experts, const float* logits, int64_t row, const int64_t* chosen,
           std::vector<std::vector<Route>>& routes) {
  const int num_experts = static_cast<int>(experts.down.size());
  const float largest = *std::max_element(logits, logits + num_experts);
  float total = 0;
  for (int i = 0; i < num_experts; ++i) total += std::exp(logits[i] - largest);
  if (experts.normalised) {
    total = 0;
    for (int i = 0; i < experts.top_k; ++i) total += std::exp(logits[chosen[i]] - largest);
  }
  for (int i = 0; i < experts.top_k; ++i) {
    const float share = std::exp(logits[chosen[i]] - largest) / total;
    routes[static_cast<size_t>(chosen[i])].push_back({row, share});
  }
}

// Rows of some experts that are multiplied together, grouped by expert.
struct Batch {
  std::vector<size_t> experts;
  std::vector<int64_t> counts;  // rows per expert
  std::vector<Route> routes;
};

// Overwrites x with the outputs of the batch's experts; both [routes, hidden]. inner: memory between the
// products.
void run_mlps(const Experts& experts, const Batch& batch, int64_t hidden, float* x, float* inner,
              int num_threads) {
  std::vector<LinearProduct> first, second;
  for (size_t i = 0; i < batch.experts.size(); ++i) {
    const std::vector<Matrix>& gate_up = experts.gate_up[batch.experts[i]];
    const Matrix& down = experts.down[batch.experts[i]];
    const int64_t count = batch.counts[i], width = columns(gate_up);
    const int64_t mlp = gate_up.front().gated ? width : width / 2;
    first.push_back({{x, DType::kFloat32, count, hidden, hidden}, gate_up, {inner, width, false}});
    second.push_back({{inner, DType::kFloat32, count, mlp, width}, {&down, 1}, {x, hidden, false}});
    x += count * hidden;
    inner += count * width;
  }
  multiply(first, num_threads);
  for (const LinearProduct& product : first) {
    if (product.weights.front().gated) continue;
    const LinearOut& out = product.out;
    const int64_t rows = product.x.count, n = out.stride / 2;
    if (experts.clamp) {
      clamped_swiglu_rows(experts.clamp->alpha, experts.clamp->limit, out.data, out.stride, rows, n,
                          num_threads);
    } else {
      activate_rows(Activation::kSilu, true, out.data, out.stride, rows, n, num_threads);
    }
  }
  multiply(second, num_threads);
}

void run_batch(const ExpertsTask& task, const Batch& batch, int num_threads) {
  const int64_t hidden = task.hidden, rows = static_cast<int64_t>(batch.routes.size());
  int64_t inner = 0;
  for (size_t i = 0; i < batch.experts.size(); ++i) {
    inner += batch.counts[i] * columns(task.experts.gate_up[batch.experts[i]]);
  }
  thread_local Scratch memory;
  auto* const x = reinterpret_cast<float*>(memory.reserve(static_cast<size_t>(rows * hidden + inner)));
  const int threads = rows * hidden < kSmall ? 1 : num_threads;
  parallel_for(threads, rows, [&](int64_t i) {
    std::copy_n(task.x + batch.routes[static_cast<size_t>(i)].row * hidden, hidden, x + i * hidden);
  });
  run_mlps(task.experts, batch, hidden, x, x + rows * hidden, num_threads);
  const RowKernels& kernels = cpu_isa().kernels.rows;
  parallel_for(threads, (hidden + kBand - 1) / kBand, [&](int64_t band) {
    const int64_t begin = band * kBand, n = std::min(kBand, hidden - begin);
    for (int64_t i = 0; i < rows; ++i) {
      const Route& one = batch.routes[static_cast<size_t>(i)];
      kernels.add_scaled(x + i * hidden + begin, one.weight, n, task.out + one.row * hidden + begin);
    }
  });
}

// A row's share multiplies the input of the last product, which has no bias.
void add_shared(const ExpertsTask& task, const SharedExpert& expert, int num_threads) {
  const int64_t hidden = task.hidden, width = columns(expert.gate_up);
  const int64_t mlp = expert.gate_up.front().gated ? width : width / 2;
  const int64_t shares = expert.share ? columns(*expert.share) : 0;
  thread_local Scratch memory;
  auto* const inner =
      reinterpret_cast<float*>(memory.reserve(static_cast<size_t>(task.rows * (width + shares))));
  float* const logits = inner + task.rows * width;
  const LinearRows x{task.x, DType::kFloat32, task.rows, hidden, hidden};
  multiply(x, expert.gate_up, {inner, width, false}, num_threads);
  if (mlp < width) activate_rows(Activation::kSilu, true, inner, width, task.rows, mlp, num_threads);
  if (expert.share) {
    multiply(x, {&*expert.share, 1}, {logits, shares, false}, num_threads);
    for (int64_t row = 0; row < task.rows; ++row) {
      const float share = 1 / (1 + std::exp(-logits[row * shares]));
      scale_and_cap_rows(share, 0, inner + row * width, width, 1, mlp, 1);
    }
  }
  multiply({inner, DType::kFloat32, task.rows, mlp, width}, {&expert.down, 1}, {task.out, hidden, true},
           num_threads);
}

}  // namespace

void run_experts(const ExpertsTask& task, int num_threads) {
  const Experts& experts = task.experts;
  const int64_t hidden = task.hidden, width = columns(experts.router);
  const size_t num_experts = experts.down.size();
  thread_local Scratch memory;
  auto* const logits = reinterpret_cast<float*>(memory.reserve(static_cast<size_t>(task.rows * width)));
  multiply({task.x, DType::kFloat32, task.rows, hidden, hidden}, {&experts.router, 1}, {logits, width, false},
           num_threads);
  std::vector<std::vector<Route>> routes(num_experts);
  std::vector<int64_t> order;
  for (int64_t row = 0; row < task.rows; ++row) {
    const float* const of_row = logits + row * width;
    const int64_t* chosen = task.chosen == nullptr ? nullptr : task.chosen + row * experts.top_k;
    if (chosen == nullptr) {
      choose(of_row, static_cast<int>(num_experts), experts.top_k, order);
      chosen = order.data();
    }
    route(experts, of_row, row, chosen, routes);
  }
  std::fill_n(task.out, task.rows * hidden, 0.0f);
  Batch batch;
  for (size_t e = 0; e < num_experts; ++e) {
    if (routes[e].empty()) continue;
    if (!batch.routes.empty() && batch.routes.size() + routes[e].size() > kTogether) {
      run_batch(task, batch, num_threads);
      batch = {};
    }
    batch.experts.push_back(e);
    batch.counts.push_back(static_cast<int64_t>(routes[e].size()));
    batch.routes.insert(batch.routes.end(), routes[e].begin(), routes[e].end());
  }
  if (!batch.routes.empty()) run_batch(task, batch, num_threads);
  if (experts.shared) add_shared(task, *experts.shared, num_threads);
}

}  // namespace tts
