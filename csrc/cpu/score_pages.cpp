#include "cpu/score_pages.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "common/error.h"
#include "cpu/check_plan.h"
#include "cpu/runtime/bfloat16.h"
#include "cpu/runtime/isa.h"
#include "cpu/runtime/parallel.h"

namespace tts {
namespace {

constexpr float kLog2E = 1.44269504f;

void widen(const void* data, DType dtype, int64_t offset, int count, float* out) {
  for (int c = 0; c < count; ++c) {
    out[c] = dtype == DType::kFloat32 ? static_cast<const float*>(data)[offset + c]
                                      : widen_bfloat16(static_cast<const uint16_t*>(data)[offset + c]);
  }
}

// most[i] = max(most[i], x[i]) for 16 floats; NaN if either is NaN or x[i] is infinite. Branchless, so that
// the compiler vectorizes it.
void keep_largest(const float* x, float* most) {
  for (int i = 0; i < kPageSize; ++i) most[i] = (x[i] > most[i] ? x[i] : most[i]) + (x[i] - x[i]);
}

class Run {
 public:
  Run(const ScorePagesParams& params, int num_threads)
      : p_(params),
        kernels_(cpu_isa().kernels.page_scores),
        group_(params.num_q_heads / params.num_kv_heads),
        parts_(params.summaries.vectors == kQuarters ? kQuarters : 1),
        channels_(params.summaries.vectors * summary_channels(params.summaries.vectors, params.head_dim) /
                  parts_),
        pairs_(params.summary_dtype == DType::kBFloat16),
        words_(pairs_ ? channels_ / 2 : channels_),
        stride_((params.num_columns + kPageSize - 1) / kPageSize * kPageSize) {
    const int64_t blocks = p_.plan.num_blocks, heads = p_.num_kv_heads;
    parallel_for(num_threads, blocks * heads,
                 [&](int64_t i) { run_unit(p_.plan.blocks[i / heads], static_cast<int>(i % heads)); });
  }

 private:
  // Scores one KV head of one block: rows (query, head of the group), as in tree_attention.
  void run_unit(const QueryBlock& block, int head) const {
    const int rows = (block.query_end - block.query_begin) * group_;
    const size_t q_floats = size_t(rows) * channels_, tile_words = size_t{kPageSize} * words_;
    const size_t s_floats = size_t(rows) * kScoreStride, logit_floats = size_t(rows) * stride_;
    thread_local std::vector<float> floats;
    thread_local std::vector<uint32_t> tiles;
    floats.resize(q_floats + s_floats + logit_floats + static_cast<size_t>(stride_));
    tiles.resize(kScoreTiles * tile_words);
    float* q = floats.data();
    float* s = q + q_floats;
    float* logits = s + s_floats;
    float* scores = logits + logit_floats;

    pack_queries(block, head, q);
    std::fill_n(logits, logit_floats, -std::numeric_limits<float>::infinity());
    for (int i = block.segment_begin, count; i < block.segment_end; i += count) {
      const Segment* segments = p_.plan.segments + i;
      const uint32_t* packed[kScoreTiles];
      for (count = 0; count < kScoreTiles / parts_ && i + count < block.segment_end; ++count) {
        if (segments[count].query_begin != segments[0].query_begin ||
            segments[count].query_end != segments[0].query_end) {
          break;
        }
        if (i + count + 1 < block.segment_end) prefetch_segment(segments[count + 1], head);
        for (int part = 0; part < parts_; ++part) {
          const int n = count * parts_ + part;
          packed[n] = tiles.data() + static_cast<size_t>(n) * tile_words;
          pack_segment(segments[count], head, part, tiles.data() + static_cast<size_t>(n) * tile_words);
        }
      }
      const int row = (segments[0].query_begin - block.query_begin) * group_;
      const int row_end = (segments[0].query_end - block.query_begin) * group_;
      kernels_.multiply(q + int64_t{row} * channels_, row_end - row, channels_, pairs_, packed,
                        count * parts_, s);
      for (int n = 0; n < count; ++n) {
        for (int r = row; r < row_end; ++r) {
          float* products = s + int64_t{r - row} * kScoreStride + n * parts_ * kPageSize;
          for (int part = 1; part < parts_; ++part) keep_largest(products + part * kPageSize, products);
          set_logits(segments[n], products, logits + r * stride_);
        }
      }
    }
    for (int query = block.query_begin; query < block.query_end; ++query) {
      write_scores(query, head, logits + int64_t{query - block.query_begin} * group_ * stride_, scores);
    }
  }

  // Rows of q times scale, in units of log2. For minima and maxima, the sum of max(q min, q max) is q- . min
  // + q+ . max, with q+ = max(q, 0) and q- = min(q, 0). For quarters, only the slow channels.
  void pack_queries(const QueryBlock& block, int head, float* out) const {
    const int d = p_.head_dim;
    const float factor = p_.scale * kLog2E;
    float q[kMaxHeadDim];
    for (int query = block.query_begin; query < block.query_end; ++query) {
      for (int h = head * group_; h < (head + 1) * group_; ++h, out += channels_) {
        widen(p_.q, p_.q_dtype, p_.plan.query_order[query] * p_.q_token_stride + h * p_.q_head_stride, d, q);
        for (int c = 0; c < d; ++c) q[c] *= factor;
        if (p_.summaries.vectors == 1) {
          std::copy_n(q, d, out);
        } else if (p_.summaries.vectors == 2) {
          for (int c = 0; c < d; ++c) {
            out[c] = q[c] > 0.0f ? 0.0f : q[c];
            out[d + c] = q[c] > 0.0f ? q[c] : 0.0f;
          }
        } else {
          for (int i = 0; i < channels_; ++i) out[i] = q[slow_channel(i, d)];
        }
      }
    }
  }

  const uint32_t* summary(int32_t page, int head) const {
    return static_cast<const uint32_t*>(p_.summaries.data) +
           (int64_t{std::max(page, 0)} * p_.num_kv_heads + head) * parts_ * words_;
  }

  // Packs one part of the summaries of a segment's pages into the columns of its tile; other columns repeat
  // the first page's part.
  void pack_segment(const Segment& segment, int head, int part, uint32_t* tile) const {
    const uint32_t* rows[kPageSize];
    const int32_t* pages = p_.plan.pages + segment.page_offset;
    const int first = segment.first_page % kPageSize;
    for (int j = 0; j < kPageSize; ++j) {
      const bool held = j >= first && j < first + segment.num_pages;
      rows[j] = summary(held ? pages[j - first] : pages[0], head) + part * words_;
    }
    if (words_ >= kPageSize) return kernels_.pack(rows, words_, tile);
    for (int i = 0; i < words_; ++i) {
      for (int j = 0; j < kPageSize; ++j) tile[kPageSize * i + j] = rows[j][i];
    }
  }

  // One head's page summaries are too far apart for the hardware prefetcher.
  void prefetch_segment(const Segment& segment, int head) const {
    constexpr int kLine = 16;  // words
    for (int j = 0; j < segment.num_pages; ++j) {
      const uint32_t* words = summary(p_.plan.pages[segment.page_offset + j], head);
      for (int i = 0; i < parts_ * words_; i += kLine) __builtin_prefetch(words + i, 0, 2);  // L2
    }
  }

  void set_logits(const Segment& segment, const float* products, float* logits) const {
    const int first = segment.first_page % kPageSize;
    const auto count = std::min<int64_t>(segment.num_pages, stride_ - segment.first_page);
    for (int64_t i = 0; i < count; ++i) {
      if (p_.plan.pages[segment.page_offset + i] >= 0) logits[segment.first_page + i] = products[first + i];
    }
  }

  void write_scores(int query, int head, float* logits, float* scores) const {
    const int position = p_.plan.query_position[query];
    const int64_t seen = position / kPageSize + 1, padded = (seen + kPageSize - 1) / kPageSize * kPageSize;
    // All pages but the last have 16 tokens, so only the last page's logit needs a correction.
    const float fewer = std::log2(static_cast<float>(position % kPageSize + 1) / kPageSize);
    const int64_t token = p_.plan.query_order[query];
    std::fill_n(scores, padded, 0.0f);
    for (int h = 0; h < group_; ++h, logits += stride_) {
      logits[seen - 1] += fewer;
      std::fill(logits + seen, logits + padded, -std::numeric_limits<float>::infinity());
      require(kernels_.add_softmax(logits, padded, 1.0f / static_cast<float>(group_), scores), "q: row ",
              token, " holds NaN or infinity, or the summary of one of its pages does");
    }
    float* out = p_.scores + (head * p_.plan.num_queries + token) * p_.num_columns;
    std::copy_n(scores, seen, out);
    std::fill(out + seen, out + p_.num_columns, 0.0f);
  }

  const ScorePagesParams& p_;
  const PageScoreKernels kernels_;
  const int group_;
  const int parts_;       // parts of a page; the largest of their products is its logit
  const int channels_;    // per part
  const bool pairs_;      // a word holds two channels
  const int words_;       // per part
  const int64_t stride_;  // num_columns rounded up to whole vectors
};

}  // namespace

void score_pages(const ScorePagesParams& params, int num_threads) {
  require(params.num_kv_heads >= 1 && params.head_dim >= kMinHeadDim && params.head_dim <= kMaxHeadDim &&
              params.head_dim % kHeadDimStep == 0,
          "summaries: got ", params.num_kv_heads, " KV heads of head_dim ", params.head_dim,
          ", expected at least one and a multiple of ", kHeadDimStep, " from ", kMinHeadDim, " to ",
          kMaxHeadDim);
  const int vectors = params.summaries.vectors;
  require(vectors == 1 || vectors == 2 || vectors == kQuarters, "summaries: got ", vectors,
          " vectors a page, expected 1 (mean), 2 (minmax) or 4 (quarters)");
  require(params.num_q_heads >= 1 && params.num_q_heads % params.num_kv_heads == 0, "q: got ",
          params.num_q_heads, " heads, expected a multiple of the ", params.num_kv_heads, " KV heads");
  require(params.scale > 0.0f && std::isfinite(params.scale), "scale: got ", params.scale,
          ", expected a finite number > 0");
  check_plan(params.plan, params.num_pages);
  for (int64_t i = 0; i < params.plan.num_queries; ++i) {
    require(params.plan.query_position[i] / kPageSize < params.num_columns, "query_position[", i, "]: got ",
            params.plan.query_position[i], ", expected a position on the first ", params.num_columns,
            " pages");
  }
  Run(params, num_threads);
}

}  // namespace tts
