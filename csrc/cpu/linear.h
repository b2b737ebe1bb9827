// Products of rows with packed weights of any kind: out = x W^T + bias, or silu(x G^T) * (x U^T) for a gated
// weight.
#pragma once

#include <span>

#include "cpu/matrix.h"

namespace tts {

struct LinearProduct {
  LinearRows x;
  std::span<const Matrix> weights;  // side by side: columns of the first, then of the next
  LinearOut out;
};

// Computes several products in shared parallel regions. Throws ArgumentError if sizes do not fit, before
// anything is written. An output's bits depend only on its row and its weights.
void multiply(std::span<const LinearProduct> products, int num_threads);

// Computes a single product.
void multiply(const LinearRows& x, std::span<const Matrix> weights, const LinearOut& out, int num_threads);

}  // namespace tts
