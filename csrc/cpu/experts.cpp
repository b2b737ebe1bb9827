#include "cpu/experts.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "cpu/packed_linear.h"
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
  const int64_t hidden = task.hidden, columns = experts.router.num_panels * kPanelOutputs;
  const size_t num_experts = experts.down.size();
  const auto product = [&](const PackedMatrix& weight, const float* x, int64_t rows, int64_t inputs,
                           float* out, LinearEnd end) {
    const int64_t outputs = weight.num_panels * kPanelOutputs / (end == LinearEnd::kSwiGLU ? 2 : 1);
    packed_linear({x, DType::kFloat32, rows, inputs, inputs, weight.panels, task.weight_dtype,
                   weight.num_panels, weight.bias, out, outputs, end},
                  num_threads);
  };
  thread_local Scratch logit_memory, memory;
  auto* const logits =
      reinterpret_cast<float*>(logit_memory.reserve(static_cast<size_t>(task.rows * columns)));
  product(experts.router, task.x, task.rows, hidden, logits, LinearEnd::kStore);
  std::vector<std::vector<Route>> routes(num_experts);
  std::vector<int64_t> order;
  for (int64_t row = 0; row < task.rows; ++row) {
    const float* const of_row = logits + row * columns;
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
    const int64_t mlp = experts.gate_up[e].num_panels * kPanelOutputs / 2;
    auto* const x = reinterpret_cast<float*>(memory.reserve(static_cast<size_t>(count * (hidden + mlp))));
    float* const inner = x + count * hidden;
    for (int64_t i = 0; i < count; ++i) {
      std::copy_n(task.x + routes[e][static_cast<size_t>(i)].row * hidden, hidden, x + i * hidden);
    }
    product(experts.gate_up[e], x, count, hidden, inner, LinearEnd::kSwiGLU);
    product(experts.down[e], inner, count, mlp, x, LinearEnd::kStore);
    for (int64_t i = 0; i < count; ++i) {
      const Route& one = routes[e][static_cast<size_t>(i)];
      kernels.add_scaled(x + i * hidden, one.weight, hidden, task.out + one.row * hidden);
    }
  }
}

}  // namespace tts
