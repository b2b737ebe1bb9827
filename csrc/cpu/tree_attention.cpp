// Divides attention into work units for threads and joins their results: merges chunks and rounds rows.
#include "cpu/tree_attention.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "common/error.h"
#include "cpu/check_plan.h"
#include "cpu/runtime/bfloat16.h"
#include "cpu/runtime/isa.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/scratch.h"

namespace tts {
namespace {

// Work that makes waking a thread worthwhile (about 20 microseconds).
constexpr int64_t kMinFlopPerThread = int64_t{1} << 20;

constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;

// Units are split only while their partial states stay small compared with the KV that they cover.
constexpr int64_t kMaxPartialFloats = int64_t{1} << 26;

struct Chunk {
  int segment_begin, segment_end;
};

// One KV head of one query block: all its chunks in order, or one chunk (partial >= 0).
struct Unit {
  int block, head, partial;
  int64_t cost;
};

// Final numbers of a row's merged state: the softmax denominator in units of 2^m, and the natural
// log-sum-exp.
struct RowEnd {
  float total, lse;
};

int64_t state_floats(int rows, int head_dim) { return int64_t{rows} * (head_dim + 2); }

AttentionState state_at(float* data, int rows, int head_dim) {
  return {data + int64_t{rows} * head_dim, data + int64_t{rows} * (head_dim + 1), data};
}

// into = into (+) next, row by row. All merges use this function, so that sequential and parallel chunks give
// the same bits. A row that one state left untouched is taken exactly from the other.
void merge(const AttentionState& into, const AttentionState& next, int rows, int head_dim) {
  for (int row = 0; row < rows; ++row) {
    if (next.l[row] == 0.0f) continue;
    float* acc = into.acc + int64_t{row} * head_dim;
    const float* next_acc = next.acc + int64_t{row} * head_dim;
    if (into.l[row] == 0.0f) {
      into.m[row] = next.m[row];
      into.l[row] = next.l[row];
      std::memcpy(acc, next_acc, sizeof(float) * static_cast<size_t>(head_dim));
      continue;
    }
    const float m = std::max(into.m[row], next.m[row]);
    const float a = std::exp2(into.m[row] - m), b = std::exp2(next.m[row] - m);
    into.m[row] = m;
    into.l[row] = into.l[row] * a + next.l[row] * b;
    for (int c = 0; c < head_dim; ++c) acc[c] = acc[c] * a + next_acc[c] * b;
  }
}

const AttentionKernels& kernels_for(DType pages, DType q) {
  const LevelKernels& kernels = cpu_isa().kernels;
  const bool bfloat16 = q == DType::kBFloat16;
  if (pages == DType::kInt8) return bfloat16 ? kernels.attention_int8_bfloat16 : kernels.attention_int8;
  return bfloat16 ? kernels.attention_bfloat16 : kernels.attention_float32;
}

class Run {
 public:
  Run(const TreeAttentionParams& params, int num_threads)
      : p_(params),
        group_(params.num_q_heads / params.kv.num_kv_heads),
        kernels_(kernels_for(params.kv.dtype, params.q_dtype)),
        sparse_(params.mask != nullptr || has_holes(params.plan)) {
    find_chunks();
    allocate_mass();
    const int64_t flop = pages_read() * 4 * kPageSize * params.num_q_heads * params.kv.head_dim;
    num_threads = static_cast<int>(std::min<int64_t>(num_threads, 1 + flop / kMinFlopPerThread));
    make_units(num_threads);
    parallel_for(num_threads, static_cast<int64_t>(units_.size()),
                 [&](int64_t i) { run_unit(units_[static_cast<size_t>(i)]); });
  }

 private:
  const QueryBlock& block(int b) const { return p_.plan.blocks[b]; }
  const Segment& segment(int s) const { return p_.plan.segments[s]; }
  int rows(int b) const { return (block(b).query_end - block(b).query_begin) * group_; }

  int first_visible_at(int position) const {
    const int first = p_.window > 0 ? std::max(position - p_.window + 1, 0) : 0;
    return p_.attention_chunk > 0 ? std::max(first, position - position % p_.attention_chunk) : first;
  }

  // Groups each block's segments by chunk of the path, and omits chunks before every window.
  void find_chunks() {
    first_chunk_.push_back(0);
    for (int b = 0; b < p_.plan.num_blocks; ++b) {
      const bool limited = p_.window > 0 || p_.attention_chunk > 0;
      int first_visible = limited ? INT32_MAX : 0;
      for (int i = block(b).query_begin; limited && i < block(b).query_end; ++i) {
        first_visible = std::min(first_visible, first_visible_at(p_.plan.query_position[i]));
      }
      const int first_chunk = first_visible / (kChunkTiles * kTileTokens);
      int previous = -1;
      for (int s = block(b).segment_begin; s < block(b).segment_end; ++s) {
        const int chunk = segment(s).first_page / (kChunkTiles * kTilePages);
        if (chunk < first_chunk) continue;
        if (chunk != previous) chunks_.push_back({s, s});
        chunks_.back().segment_end = s + 1;
        previous = chunk;
      }
      first_chunk_.push_back(static_cast<int>(chunks_.size()));
    }
  }

  static bool has_holes(const PlanView& plan) {
    return std::any_of(plan.pages, plan.pages + plan.num_pages, [](int32_t page) { return page < 0; });
  }

  // Number of (query, page) pairs, averaged over the KV heads.
  int64_t pages_read() const {
    if (p_.mask == nullptr) return cost(0, first_chunk_.back());
    int64_t bits = 0;
    for (int64_t i = 0; i < p_.kv.num_kv_heads * p_.plan.num_queries * p_.mask_words; ++i) {
      bits += std::popcount(static_cast<uint32_t>(p_.mask[i]));
    }
    return bits / p_.kv.num_kv_heads;
  }

  int64_t mass_tiles() const { return (p_.mass_columns + kTilePages - 1) / kTilePages; }
  int64_t mass_floats(int rows) const { return rows * (p_.mass_columns + mass_tiles()); }

  void allocate_mass() {
    if (p_.mass == nullptr) return;
    int64_t floats = 0;
    for (int b = 0; b < p_.plan.num_blocks; ++b) {
      mass_offset_.push_back(floats);
      floats += p_.kv.num_kv_heads * mass_floats(rows(b));
    }
    mass_.resize(static_cast<size_t>(floats));
  }

  MassExport mass_of(const Unit& unit) {
    const int n = rows(unit.block);
    float* sums = mass_.data() + mass_offset_[unit.block] + unit.head * mass_floats(n);
    return {sums, sums + n * p_.mass_columns, p_.mass_columns};
  }

  int64_t cost(int chunk_begin, int chunk_end) const {
    int64_t sum = 0;
    for (int c = chunk_begin; c < chunk_end; ++c) {
      const Chunk& chunk = chunks_[static_cast<size_t>(c)];
      for (int s = chunk.segment_begin; s < chunk.segment_end; ++s) {
        sum += int64_t{segment(s).num_pages} * (segment(s).query_end - segment(s).query_begin);
      }
    }
    return sum;
  }

  void make_units(int num_threads) {
    const int heads = p_.kv.num_kv_heads, blocks = static_cast<int>(p_.plan.num_blocks);
    int64_t partial_floats = 0;
    for (int b = 0; b < blocks; ++b) {
      const int n = first_chunk_[b + 1] - first_chunk_[b];
      partial_offset_.push_back(partial_floats);
      if (n > 1) partial_floats += n * heads * state_floats(rows(b), p_.kv.head_dim);
    }
    const bool split = num_threads > 1 && heads * blocks < 4 * num_threads && partial_floats > 0 &&
                       partial_floats <= kMaxPartialFloats;
    if (split) {
      partials_.reset(new float[static_cast<size_t>(partial_floats)]);
      unfinished_.reset(new std::atomic<int>[static_cast<size_t>(heads * blocks)]);
    }
    for (int b = 0; b < blocks; ++b) {
      const int begin = first_chunk_[b], end = first_chunk_[b + 1];
      for (int head = 0; head < heads; ++head) {
        if (split && end - begin > 1) {
          unfinished_[b * heads + head] = end - begin;
          for (int c = begin; c < end; ++c) units_.push_back({b, head, c - begin, cost(c, c + 1)});
        } else {
          units_.push_back({b, head, -1, cost(begin, end)});
        }
      }
    }
    std::stable_sort(units_.begin(), units_.end(),
                     [](const Unit& a, const Unit& b) { return a.cost > b.cost; });
  }

  AttentionState partial_state(const Unit& unit, int partial) const {
    const int chunks = first_chunk_[unit.block + 1] - first_chunk_[unit.block];
    const int64_t index = int64_t{unit.head} * chunks + partial;
    const int d = p_.kv.head_dim, n = rows(unit.block);
    return state_at(partials_.get() + partial_offset_[unit.block] + index * state_floats(n, d), n, d);
  }

  void run_unit(const Unit& unit) {
    thread_local Scratch memory;
    const int n = rows(unit.block), d = p_.kv.head_dim, heads = p_.kv.num_kv_heads;
    const size_t q_words = static_cast<size_t>(n) * d, s_words = static_cast<size_t>(n) * kScoreRow;
    const size_t scale_words = static_cast<size_t>(n / group_) * 2 * kTilePages;
    const size_t operand_words = size_t{5} * kPageSize * d,
                 state_words = static_cast<size_t>(state_floats(n, d));
    uint32_t* words = memory.reserve(q_words + s_words + scale_words + operand_words + 2 * state_words);
    uint32_t* const scales = words + q_words + s_words;
    const ChunkScratch scratch{words, words + q_words, reinterpret_cast<float*>(scales),
                               scales + scale_words};
    float* states = reinterpret_cast<float*>(scratch.operands + operand_words);
    const AttentionState total = state_at(states, n, d), next = state_at(states + state_words, n, d);

    pack_rows(unit, scratch.q);
    const int first = first_chunk_[unit.block], chunks = first_chunk_[unit.block + 1] - first;
    if (unit.partial < 0) {
      attend(unit, first, scratch, total);
      for (int c = 1; c < chunks; ++c) {
        attend(unit, first + c, scratch, next);
        merge(total, next, n, d);
      }
      write_rows(unit, total);
      return;
    }
    attend(unit, first + unit.partial, scratch, partial_state(unit, unit.partial));
    // The thread that finishes the last chunk merges all chunks, in order.
    if (unfinished_[unit.block * heads + unit.head].fetch_sub(1, std::memory_order_acq_rel) > 1) return;
    for (int c = 1; c < chunks; ++c) merge(partial_state(unit, 0), partial_state(unit, c), n, d);
    write_rows(unit, partial_state(unit, 0));
  }

  void attend(const Unit& unit, int c, const ChunkScratch& scratch, const AttentionState& state) {
    const Chunk& chunk = chunks_[static_cast<size_t>(c)];
    ChunkTask task{};
    task.kv = p_.kv;
    task.kv_head = unit.head;
    task.group = group_;
    task.query_begin = block(unit.block).query_begin;
    task.query_end = block(unit.block).query_end;
    task.position = p_.plan.query_position;
    task.segment_begin = &segment(chunk.segment_begin);
    task.segment_end = task.segment_begin + (chunk.segment_end - chunk.segment_begin);
    task.pages = p_.plan.pages;
    task.scale = p_.scale;
    task.soft_cap = p_.soft_cap;
    task.window = p_.window;
    task.attention_chunk = p_.attention_chunk;
    task.slopes = p_.slopes == nullptr ? nullptr : p_.slopes + unit.head * group_;
    task.mask = p_.mask == nullptr ? nullptr : p_.mask + unit.head * p_.plan.num_queries * p_.mask_words;
    task.mask_words = p_.mask_words;
    task.query_order = p_.plan.query_order;
    const MassExport mass = p_.mass == nullptr ? MassExport{} : mass_of(unit);
    task.mass = p_.mass == nullptr ? nullptr : &mass;
    (sparse_ ? kernels_.attend_chunk_sparse : kernels_.attend_chunk)(task, scratch, state);
  }

  // Row (i, h) of a unit is q[query_order[i], head * group + h].
  template <class Body>
  void for_each_row(const Unit& unit, const Body& body) const {
    int row = 0;
    for (int i = block(unit.block).query_begin; i < block(unit.block).query_end; ++i) {
      for (int h = 0; h < group_; ++h) body(row++, int64_t{p_.plan.query_order[i]}, unit.head * group_ + h);
    }
  }

  void pack_rows(const Unit& unit, uint32_t* words) const {
    const int64_t element = p_.q_dtype == DType::kFloat32 ? 4 : 2;
    for_each_row(unit, [&](int row, int64_t token, int64_t head) {
      const int64_t offset = token * p_.q_token_stride + head * p_.q_head_stride;
      kernels_.pack_q(static_cast<const char*>(p_.q) + offset * element, p_.q_dtype, p_.kv.head_dim,
                      words + int64_t{row} * p_.kv.head_dim);
    });
  }

  // A sink counts once, here, after the merge of all chunks.
  RowEnd end_of(const AttentionState& state, int row, int64_t head) const {
    const float m = state.m[row], l = state.l[row];
    if (p_.sinks == nullptr || p_.sinks[head] == -INFINITY) return {l, (m + std::log2(l)) * kLn2};
    const float sink = p_.sinks[head] * kLog2E, top = std::max(m, sink);
    return {l + std::exp2(sink - m),
            (top + std::log2(l * std::exp2(m - top) + std::exp2(sink - top))) * kLn2};
  }

  void write_rows(const Unit& unit, const AttentionState& state) {
    const int d = p_.kv.head_dim;
    for_each_row(unit, [&](int row, int64_t token, int64_t head) {
      const int64_t index = token * p_.num_q_heads + head;
      const float* acc = state.acc + int64_t{row} * d;
      const RowEnd end = end_of(state, row, head);
      const float inverse = end.total == 0.0f ? 0.0f : 1.0f / end.total;  // total 0: the row reads nothing
      for (int c = 0; c < d; ++c) {
        if (p_.q_dtype == DType::kFloat32) {
          static_cast<float*>(p_.out)[index * d + c] = acc[c] * inverse;
        } else {
          static_cast<uint16_t*>(p_.out)[index * d + c] = round_to_bfloat16(acc[c] * inverse);
        }
      }
      if (p_.lse != nullptr) p_.lse[index] = end.lse;
    });
    if (p_.mass != nullptr) write_mass(unit, state);
  }

  void write_mass(const Unit& unit, const AttentionState& state) {
    const MassExport mass = mass_of(unit);
    for (int row = 0, i = block(unit.block).query_begin; i < block(unit.block).query_end; ++i) {
      const int64_t token = unit.head * p_.plan.num_queries + p_.plan.query_order[i];
      float* out = p_.mass + token * p_.mass_columns;
      std::fill_n(out, p_.mass_columns, 0.0f);
      for (int h = 0; h < group_; ++h, ++row) {
        const float total = end_of(state, row, unit.head * group_ + h).total;
        const float* sums = mass.sums + row * p_.mass_columns;
        for (int64_t c = 0; c < p_.mass_columns; ++c) {
          if (sums[c] == 0.0f) continue;
          const float m = mass.m[row * mass_tiles() + c / kTilePages];
          out[c] += sums[c] * std::exp2(m - state.m[row]) / (total * static_cast<float>(group_));
        }
      }
    }
  }

  const TreeAttentionParams& p_;
  const int group_;
  const AttentionKernels kernels_;
  const bool sparse_;
  std::vector<Chunk> chunks_;
  std::vector<int> first_chunk_;         // [num_blocks + 1] index into chunks_, by block
  std::vector<int64_t> partial_offset_;  // [num_blocks] offset into partials_
  std::vector<Unit> units_;
  std::vector<float> mass_;                         // [block][head] data of MassExport
  std::vector<int64_t> mass_offset_;                // [num_blocks] offset into mass_
  std::unique_ptr<float[]> partials_;               // [block][head][chunk] states of split blocks
  std::unique_ptr<std::atomic<int>[]> unfinished_;  // [block, head] chunks not yet attended
};

}  // namespace

void check_tree_attention(const TreeAttentionParams& params) {
  check_view(params.kv);
  require(params.num_q_heads >= 1 && params.num_q_heads % params.kv.num_kv_heads == 0, "q: got ",
          params.num_q_heads, " heads, expected a multiple of the ", params.kv.num_kv_heads, " KV heads");
  require(params.scale > 0.0f && std::isfinite(params.scale), "scale: got ", params.scale,
          ", expected a finite number > 0");
  require(params.window >= 0, "window: got ", params.window, ", expected >= 1, or 0 for none");
  require(params.attention_chunk >= 0, "attention_chunk: got ", params.attention_chunk,
          ", expected >= 1, or 0 for none");
  require(params.soft_cap >= 0.0f && std::isfinite(params.soft_cap), "logits_soft_cap: got ", params.soft_cap,
          ", expected a finite number > 0, or 0 for none");
  require(params.q_dtype != DType::kInt8 &&
              (params.q_dtype == params.kv.dtype || params.kv.dtype == DType::kInt8),
          "q: expected the dtype of the pages, or float32 or bfloat16 with int8 pages");
  check_plan(params.plan, params.kv.num_pages);
  if (params.mask != nullptr) check_mask(params.plan, params.mask_words);
  for (int64_t i = 0; params.mass != nullptr && i < params.plan.num_queries; ++i) {
    require(params.plan.query_position[i] / kPageSize < params.mass_columns, "query_position[", i, "]: got ",
            params.plan.query_position[i], ", expected a position on the first ", params.mass_columns,
            " pages");
  }
}

void run_tree_attention(const TreeAttentionParams& params, int num_threads) {
  if (params.plan.num_queries > 0) Run(params, num_threads);
}

void tree_attention(const TreeAttentionParams& params, int num_threads) {
  check_tree_attention(params);
  run_tree_attention(params, num_threads);
}

}  // namespace tts
