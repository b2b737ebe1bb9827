// Adds a sink, a logit without a value, to the otherwise finished softmax of a row.
#pragma once

#include <cmath>

namespace tts::cuda {

// Adds the sink to the row's natural log-sum-exp; returns the factor for the row's output.
__device__ inline float count_sink(float sink, float& lse) {
  const float top = fmaxf(lse, sink);
  if (top == -INFINITY) return 0;  // nothing seen, and no sink
  const float share = expf(lse - top), total = share + expf(sink - top);
  lse = top + logf(total);
  return share / total;
}

}  // namespace tts::cuda
