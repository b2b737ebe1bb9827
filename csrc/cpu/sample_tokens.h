// Draws the next token of each row of logits, with its log-probability and the row's entropy.
#pragma once

#include <cstdint>

namespace tts {

// Sampling parameters of a row, as in SamplingParams of the Python API; a row of a float64 tensor [rows, 6].
struct SampleParams {
  double temperature;         // 0: the most probable token, the first of equals
  double top_k;               // 0: all
  double top_p;               // 1: all
  double min_p;               // 0: all
  double repetition_penalty;  // for the row's `seen` tokens; 1: none
  double uniform;             // in [0, 1): argument of the inverse CDF, in vocabulary order
};

// A token of a row.
struct RowToken {
  int32_t row, token;
};

struct SampleTask {
  const float* logits;  // [rows, vocab], contiguous channels
  int64_t rows, vocab, row_stride;
  const SampleParams* params;  // [rows]
  const RowToken* seen;        // [num_seen] by row, each token once: subject to the repetition penalty
  int64_t num_seen;
  const RowToken* suppressed;  // [num_suppressed] by row: never drawn
  int64_t num_suppressed;
  const int64_t* given;  // [rows] tokens to score instead of drawing; null: draw
  int64_t* tokens;       // [rows]
  // [3, rows]: log-probability of the token, entropy, log-sum-exp, in nats, from the unmodified logits. If a
  // row has a NaN, +inf or no finite value, its log-sum-exp is not finite and its token is 0.
  double* numbers;
  const RowToken* changed = nullptr;  // [num_changed] by row, each token once: drawn with another logit
  const float* values = nullptr;      // [num_changed] those logits, before the repetition penalty
  int64_t num_changed = 0;
  const bool* forbidden = nullptr;  // [rows, vocab]: also never drawn; null: none
};

// Throws ArgumentError if an index is out of range.
void sample_tokens(const SampleTask& task, int num_threads);

}  // namespace tts
