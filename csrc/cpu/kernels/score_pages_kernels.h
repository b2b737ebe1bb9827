// Kernels that an instruction-set level provides to score_pages.cpp. Plain data only, as in
// tree_attention_kernels.h.
#pragma once

#include <cstdint>

#include "cpu/kv_layout.h"

namespace tts {

// Summaries of 16 pages form a tile laid out like the 16 tokens of a packed K page (kv_layout.h), as a page's
// score is computed from its summary like a token's logit from its key. kScoreTiles tiles are multiplied at a
// time.
constexpr int kScoreTiles = 4;
constexpr int kScoreStride = 272;  // floats between rows of the products: kScoreRow

struct PageScoreKernels {
  // Packs the summaries of 16 pages, `words` >= 16 words each: tile[16 i + j] = rows[j][i].
  void (*pack)(const uint32_t* const* rows, int words, uint32_t* tile);
  // s[r * kScoreStride + 16 n + j] = sum over c of q[r * channels + c] * channel c of summary j of tiles[n],
  // for n < count <= kScoreTiles. A word of a tile is a float or, `pairs`, two bfloat16.
  void (*multiply)(const float* q, int rows, int channels, bool pairs, const uint32_t* const* tiles,
                   int count, float* s);
  // scores[i] += weight * softmax(logits)[i]. Logits are in units of log2, -inf means absent, count is a
  // multiple of 16. Overwrites the logits. Returns false and adds nothing if the sum is not finite.
  bool (*add_softmax)(float* logits, int64_t count, float weight, float* scores);
};

}  // namespace tts
