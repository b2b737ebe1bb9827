// Products of rows with packed weights of any kind: out = x W^T + bias, or silu(x G^T) * (x U^T) where a
// weight is gated.
#pragma once

#include <span>

#include "cpu/matrix.h"

namespace tts {

struct LinearProduct {
  LinearRows x;
  std::span<const Matrix> weights;  // side by side: the columns of the first, then those of the next
  LinearOut out;
};

// Several at once, which share parallel regions. Throws ArgumentError where sizes do not fit, before anything
// is written. An output's bits depend on its row and its weights only.
void multiply(std::span<const LinearProduct> products, int num_threads);

// One of them.
void multiply(const LinearRows& x, std::span<const Matrix> weights, const LinearOut& out, int num_threads);

}  // namespace tts
