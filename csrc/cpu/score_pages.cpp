#include "cpu/score_pages.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "common/error.h"
#include "cpu/bfloat16.h"
#include "cpu/check_plan.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace tts {
namespace {

constexpr float kLog2E = 1.44269504f;

void widen(const void* data, DType dtype, int64_t offset, int count, float* out) {
  for (int c = 0; c < count; ++c) {
    out[c] = dtype == DType::kFloat32 ? static_cast<const float*>(data)[offset + c]
                                      : widen_bfloat16(static_cast<const uint16_t*>(data)[offset + c]);
  }
}

class Run {
 public:
  Run(const ScorePagesParams& params, int num_threads)
      : p_(params),
        kernels_(cpu_isa().page_scores),
        group_(params.num_q_heads / params.num_kv_heads),
        steps_(params.summaries.vectors * params.head_dim),
        stride_((params.num_columns + kPageSize - 1) / kPageSize * kPageSize) {
    const int64_t blocks = p_.plan.num_blocks, heads = p_.num_kv_heads;
    parallel_for(num_threads, blocks * heads,
                 [&](int64_t i) { run_unit(p_.plan.blocks[i / heads], static_cast<int>(i % heads)); });
  }

 private:
  // One KV head of one block: rows (query, head of the group), as in tree_attention.
  void run_unit(const QueryBlock& block, int head) const {
    const int rows = (block.query_end - block.query_begin) * group_;
    const int64_t q_floats = int64_t{rows} * steps_, operand_floats = int64_t{steps_} * kPageSize;
    const int64_t s_floats = int64_t{rows} * kScoreStride, total_floats = int64_t{rows} * stride_;
    thread_local std::vector<float> memory;
    memory.resize(static_cast<size_t>(q_floats + operand_floats + s_floats + total_floats + stride_));
    float* q = memory.data();
    float* operands = q + q_floats;
    float* s = operands + operand_floats;
    float* logits = s + s_floats;
    float* scores = logits + total_floats;

    pack_queries(block, head, q);
    std::fill_n(logits, total_floats, -std::numeric_limits<float>::infinity());
    for (int i = block.segment_begin; i < block.segment_end; ++i) {
      const Segment& segment = p_.plan.segments[i];
      const int row = (segment.query_begin - block.query_begin) * group_;
      const int row_end = (segment.query_end - block.query_begin) * group_;
      pack_summaries(segment, head, operands);
      kernels_.multiply(q + int64_t{row} * steps_, steps_, row_end - row, operands, steps_, s);
      for (int r = row; r < row_end; ++r) {
        set_logits(segment, s + int64_t{r - row} * kScoreStride, logits + r * stride_);
      }
    }
    for (int query = block.query_begin; query < block.query_end; ++query) {
      write_scores(query, head, logits + int64_t{query - block.query_begin} * group_ * stride_, scores);
    }
  }

  // Minima and maxima: with q+ = max(q, 0) and q- = min(q, 0), sum of max(q min, q max) = q- . min + q+ .
  // max.
  void pack_queries(const QueryBlock& block, int head, float* out) const {
    const int d = p_.head_dim;
    for (int query = block.query_begin; query < block.query_end; ++query) {
      for (int h = head * group_; h < (head + 1) * group_; ++h, out += steps_) {
        widen(p_.q, p_.q_dtype, p_.plan.query_order[query] * p_.q_token_stride + h * p_.q_head_stride, d,
              out);
        if (p_.summaries.vectors == 1) continue;
        for (int c = 0; c < d; ++c) {
          const float x = out[c];
          out[c] = x > 0.0f ? 0.0f : x;
          out[d + c] = x > 0.0f ? x : 0.0f;
        }
      }
    }
  }

  // operands[step * 16 + column % 16], step going through the vectors of the page one after the other.
  void pack_summaries(const Segment& segment, int head, float* operands) const {
    std::vector<float>& page = page_buffer();
    page.resize(static_cast<size_t>(steps_));
    for (int i = 0; i < segment.num_pages; ++i) {
      const int64_t id = p_.plan.pages[segment.page_offset + i];
      if (id < 0) continue;
      widen(p_.summaries.data, p_.summary_dtype, (id * p_.num_kv_heads + head) * steps_, steps_, page.data());
      float* out = operands + (segment.first_page + i) % kPageSize;
      for (int step = 0; step < steps_; ++step) out[step * kPageSize] = page[static_cast<size_t>(step)];
    }
  }

  static std::vector<float>& page_buffer() {
    thread_local std::vector<float> buffer;
    return buffer;
  }

  void set_logits(const Segment& segment, const float* s, float* logits) const {
    const float factor = p_.scale * kLog2E;
    for (int i = 0; i < segment.num_pages; ++i) {
      const int column = segment.first_page + i;
      if (p_.plan.pages[segment.page_offset + i] >= 0 && column < stride_) {
        logits[column] = s[column % kPageSize] * factor;
      }
    }
  }

  void write_scores(int query, int head, float* logits, float* scores) const {
    const int position = p_.plan.query_position[query];
    const int64_t seen = position / kPageSize + 1, padded = (seen + kPageSize - 1) / kPageSize * kPageSize;
    // All pages but the last stand for 16 tokens: it is enough to say how many fewer that one has.
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
  const int group_, steps_;
  const int64_t stride_;  // num_columns in whole vectors
};

}  // namespace

void score_pages(const ScorePagesParams& params, int num_threads) {
  require(params.summaries.vectors == 1 || params.summaries.vectors == 2, "summaries: got ",
          params.summaries.vectors, " vectors a page, expected 1 (mean) or 2 (minmax)");
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
