// Softmax over a tile: turns its rows' scores into the operands of P V, in place.
#pragma once

#include "cpu/kernels/alibi-inl.h"
#include "cpu/kernels/attention_chunk-inl.h"

template <Storage kStorage>
struct ChunkSoftmax : ChunkBase<kStorage> {
  using Base = ChunkBase<kStorage>;
  using Base::head_dim;
  using Base::scratch;
  using Base::state;
  using Base::task;
  using typename Base::Words;

  // Overwrites the scores with the operands of P V: words t.. or, for pairs, t / 2.. (already read).
  template <class V>
  static void store_probabilities(uint32_t* s, int t, F p) {
    if constexpr (Words::kPairs) {
      V::store_bf16(s + t / 2, p);
    } else {
      V::store(s + t, p);
    }
  }

  static void multiply_pages(int begin, int end, const float* scales, uint32_t* s) {
    for (int page = begin; page < end; ++page) {
      const F scale = Vec::set1(scales[page]);
      for (int t = page * kPageSize; t < (page + 1) * kPageSize; t += Vec::kLanes) {
        Vec::store(s + t, Vec::mul(Vec::load(s + t), scale));
      }
    }
  }

  // Softmax of one row over tokens [begin, end) of the tile, in place. columns: path columns of the tile's
  // pages. page_sums (may be null): receives each page's sum of probabilities.
  void softmax_row(int row, int begin, int end, const int* columns, float* page_sums) const {
    uint32_t* s = scratch.s + row * kScoreRow;
    // From here on, whole pages: invisible tokens at either edge are overwritten with -inf.
    const int page_begin = begin / kPageSize * kPageSize,
              page_end = (end + kPageSize - 1) / kPageSize * kPageSize;
    const float* scales = Base::scales_of(task.query_begin + row / task.group);  // for int8 pages
    if constexpr (Words::kInt8) multiply_pages(page_begin / kPageSize, page_end / kPageSize, scales, s);
    float scale = task.scale * 1.44269504f;  // to units of log2
    if (task.soft_cap > 0.0f) {
      const F inner = Vec::set1(task.scale / task.soft_cap), outer = Vec::set1(task.soft_cap);
      for (int t = page_begin; t < page_end; t += Vec::kLanes) {
        Vec::store(s + t, Vec::mul(tanh_of(Vec::mul(Vec::load(s + t), inner)), outer));
      }
      scale = 1.44269504f;
    }
    if (task.slopes != nullptr) {
      subtract_slope(task.slopes[row % task.group], task.position[task.query_begin + row / task.group], scale,
                     columns, page_begin / kPageSize, page_end / kPageSize, s);
      scale = 1.0f;
    }
    constexpr uint32_t kMinusInfinity = 0xff800000u;
    for (int t = page_begin; t < begin; ++t) s[t] = kMinusInfinity;
    for (int t = end; t < page_end; ++t) s[t] = kMinusInfinity;

    const F largest = largest_of(s + page_begin, page_end - page_begin);
    const float tile_m = Vec::max_of(largest) * scale, old_m = state.m[row];
    const float m = tile_m > old_m ? tile_m : old_m;

    const F factor = Vec::set1(scale), minus_m = Vec::set1(-m);
    F sum = Vec::set1(0.0f);
    for (int t = page_begin; t < page_end; t += Vec::kLanes) {
      F p = exp2_flushed(Vec::fma(Vec::load(s + t), factor, minus_m));
      sum = Vec::add(sum, p);
      if (page_sums != nullptr) page_sums[t / kPageSize] += Vec::sum(p);
      if constexpr (Words::kInt8) p = Vec::mul(p, Vec::set1(scales[kTilePages + t / kPageSize]));
      store_probabilities<Vec>(s, t, p);
    }
    float l = Vec::sum(sum);
    if (m != old_m) {
      // Before the first tile, m is -inf and l and acc are 0: the factor 2^-inf is 0.
      const F decay = exp2_flushed(Vec::set1(old_m - m));
      float lanes[Vec::kLanes];
      Vec::store(lanes, decay);
      state.l[row] *= lanes[0];
      float* acc = state.acc + row * head_dim;
      for (int c = 0; c < head_dim; c += Vec::kLanes)
        Vec::store(acc + c, Vec::mul(Vec::load(acc + c), decay));
      state.m[row] = m;
    }
    state.l[row] += l;
  }

  void softmax(int tile) const {
    int columns[kTilePages];
    for (int page = 0; page < kTilePages; ++page) columns[page] = tile * kTilePages + page;
    for (int query = task.query_begin; query < task.query_end; ++query) {
      const int begin = max_of(Base::first_visible(query) - tile * kTileTokens, 0);
      const int end = min_of(task.position[query] + 1 - tile * kTileTokens, kTileTokens);
      if (begin >= end) continue;
      for (int row = Base::row_of(query); row < Base::row_of(query + 1); ++row) {
        float page_sums[kTilePages] = {};
        softmax_row(row, begin, end, columns, task.mass != nullptr ? page_sums : nullptr);
        if (task.mass == nullptr) continue;
        for (int page = begin / kPageSize; page * kPageSize < end; ++page) {
          export_mass(row, tile, tile * kTilePages + page, page_sums[page]);
        }
      }
    }
  }

  void export_mass(int row, int tile, int column, float page_sum) const {
    const MassExport& mass = *task.mass;
    if (column >= mass.num_columns) return;
    mass.sums[row * mass.num_columns + column] = page_sum;
    mass.m[row * ((mass.num_columns + kTilePages - 1) / kTilePages) + tile] = state.m[row];
  }
};
