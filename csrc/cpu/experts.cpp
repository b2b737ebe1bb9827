#include "cpu/experts.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "cpu/linear.h"
#include "cpu/row_ops.h"
#include "cpu/runtime/isa.h"
#include "cpu/runtime/scratch.h"

namespace tts {
namespace {

struct Route {
  int64_t row;
  float weight;
};

// The experts of a row, in the order of their logits, equal ones in their own.
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

}  // namespace

void run_experts(const ExpertsTask& task, int num_threads) {
  const Experts& experts = task.experts;
  const int64_t hidden = task.hidden, width = columns(experts.router);
  const size_t num_experts = experts.down.size();
  thread_local Scratch logit_memory, memory;
  auto* const logits = reinterpret_cast<float*>(logit_memory.reserve(static_cast<size_t>(task.rows * width)));
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
  const RowKernels& kernels = cpu_isa().kernels.rows;
  for (size_t e = 0; e < num_experts; ++e) {
    const auto count = static_cast<int64_t>(routes[e].size());
    if (count == 0) continue;
    const std::vector<Matrix>& gate_up = experts.gate_up[e];
    const bool gated = gate_up.front().gated;
    const int64_t inner_width = columns(gate_up), mlp = gated ? inner_width : inner_width / 2;
    auto* const x =
        reinterpret_cast<float*>(memory.reserve(static_cast<size_t>(count * (hidden + inner_width))));
    float* const inner = x + count * hidden;
    for (int64_t i = 0; i < count; ++i) {
      std::copy_n(task.x + routes[e][static_cast<size_t>(i)].row * hidden, hidden, x + i * hidden);
    }
    multiply({x, DType::kFloat32, count, hidden, hidden}, gate_up, {inner, inner_width, false}, num_threads);
    if (!gated) activate_rows(Activation::kSilu, true, inner, inner_width, count, mlp, num_threads);
    multiply({inner, DType::kFloat32, count, mlp, inner_width}, {&experts.down[e], 1}, {x, hidden, false},
             num_threads);
    for (int64_t i = 0; i < count; ++i) {
      const Route& one = routes[e][static_cast<size_t>(i)];
      kernels.add_scaled(x + i * hidden, one.weight, hidden, task.out + one.row * hidden);
    }
  }
}

}  // namespace tts
