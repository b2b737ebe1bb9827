// Kernels that an instruction-set level provides to sample_tokens.cpp. Plain data only, as in
// tree_attention_kernels.h.
#pragma once

#include <cstdint>

namespace tts {

constexpr int kSampleBlock = 256;  // tokens whose weights are summed together

struct SampleKernels {
  // Largest of n floats; skips NaN.
  float (*largest)(const float* x, int64_t n);
  // w[i] = 2^(scale * (x[i] - peak)), 0 where x[i] < cut. sums[b] = sum of w over block b. Returns the sum of
  // w[i] * (x[i] - peak).
  double (*weigh)(const float* x, int64_t n, float peak, float scale, float cut, float* sums);
  // Writes the w of `weigh`.
  void (*weights)(const float* x, int64_t n, float peak, float scale, float cut, float* w);
};

}  // namespace tts
