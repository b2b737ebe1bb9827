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

// An MLP with SwiGLU that all rows go through.
struct SharedExpert {
  std::vector<Matrix> gate_up;  // as of Experts
  Matrix down;                  // without bias
  std::optional<Matrix> share;  // hidden -> 1, whose sigmoid its output is multiplied by
};

struct Experts {
  Matrix router;  // hidden -> experts
  // Of each expert, side by side: gated, or all outputs of the gate, then all of up.
  std::vector<std::vector<Matrix>> gate_up;
  std::vector<Matrix> down;  // of each expert
  int top_k;
  bool normalised;                  // the weights of the chosen experts sum to 1; false: those of all do
  std::optional<Clamp> clamp = {};  // of gate_up's outputs; none: silu(gate) up
  std::optional<SharedExpert> shared = {};
};

struct ExpertsTask {
  const Experts& experts;
  const float* x;  // [rows, hidden]
  int64_t rows, hidden;
  const int64_t* chosen;  // [rows, top_k], each below the number of experts; null: those of largest logits
  float* out;             // [rows, hidden]
};

// out[row] = sum of weight * expert(x[row]) over the row's experts, in their order, and of the shared one: a
// row has the same bits whatever rows are beside it. An expert's weights are read once for all rows that
// chose it.
void run_experts(const ExpertsTask& task, int num_threads);

}  // namespace tts
