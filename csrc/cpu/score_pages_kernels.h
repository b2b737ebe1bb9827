// What one instruction-set level provides to score_pages.cpp. Plain data only, as in
// tree_attention_kernels.h.
#pragma once

#include <cstdint>

#include "cpu/kv_layout.h"

namespace tts {

constexpr int kScoreStride = 256;  // floats from row to row of `s` below: kTileTokens, the micro-kernels' own

struct PageScoreKernels {
  // s[r * kScoreStride + i] = sum over step of q[r * q_stride + step] * operands[step * 16 + i], for i < 16.
  void (*multiply)(const float* q, int64_t q_stride, int rows, const float* operands, int steps, float* s);
  // scores[i] += weight * softmax(logits)[i], logits in units of log2, count a multiple of 16; -inf counts as
  // absent. Overwrites the logits. False, and nothing added, where the sum is not a finite number.
  bool (*add_softmax)(float* logits, int64_t count, float weight, float* scores);
};

namespace generic {
extern const PageScoreKernels kPageScores;
}
namespace avx2 {
extern const PageScoreKernels kPageScores;
}
namespace avx512 {
extern const PageScoreKernels kPageScores;
}

}  // namespace tts
