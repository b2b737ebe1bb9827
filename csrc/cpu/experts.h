// A mixture of experts as a layer's MLP (Shazeer et al., arXiv 1701.06538).
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "cpu/matrix.h"

namespace tts {

struct Clamp {
  float alpha, limit;  // see clamped_swiglu_rows
};

// A SwiGLU MLP that all rows pass through.
struct SharedExpert {
  std::vector<Matrix> gate_up;  // as in Experts
  Matrix down;                  // without bias
  std::optional<Matrix> share;  // hidden -> 1; its sigmoid scales the output
};

struct Experts {
  Matrix router;  // hidden -> experts
  // By expert, matrices side by side: gated, or all gate outputs, then all up outputs.
  std::vector<std::vector<Matrix>> gate_up;
  std::vector<Matrix> down;  // by expert
  int top_k;
  bool normalised;  // the chosen experts' weights sum to 1; false: the weights of all experts do
  std::optional<Clamp> clamp = {};  // for gate_up's outputs; none: silu(gate) up
  std::optional<SharedExpert> shared = {};
};

struct ExpertsTask {
  const Experts& experts;
  const float* x;  // [rows, hidden]
  int64_t rows, hidden;
  const int64_t* chosen;  // [rows, top_k], each below the number of experts; null: the largest logits decide
  float* out;             // [rows, hidden]
};

// out[row] = sum of weight * expert(x[row]) over the row's experts, in their order, and the shared expert. A
// row's bits do not depend on other rows. An expert's weights are read once for all rows that chose it.
void run_experts(const ExpertsTask& task, int num_threads);

}  // namespace tts
