// Products of rows and quantised weights. Sums within a group are integers, exact in any order; floats are
// summed over the groups in group order. So an output's bits depend only on its row and its weights, however
// rows, panels and inputs are cut into blocks, and are the same at all levels with fused multiply-add.
#pragma once

#include "cpu/kernels/linear_end-inl.h"
#include "cpu/kernels/micro_kernels-inl.h"
#include "cpu/kernels/quantised_rows-inl.h"
#include "cpu/kernels/quantised_unpack-inl.h"

// Panels per block of sums.
constexpr int kQuantPanels = Vec::kColumns > 1 ? kPanelsTogether : 1;
// Maximum rows that read planes in place, in groups of 32, or of 16, which have twice the sums. Times
// relative to unpacked bytes, with weights from memory. With the dot product of bytes: on a Zen 4, 0.67 to
// 0.96 for 4 to 6 rows, 0.70 to 0.81 for 2 to 5 rows in groups of 16; on a Xeon with AMX, 0.83 to 0.91 for 1
// to 3 rows. With PMADDUBSW instead: 0.95 to 1.05 for 4 to 6 rows in 4 bits, 0.76 to 0.84 in 5. In the 16
// registers of AVX2 (Zen 3): 0.9 to 1.0 for two rows, up to 1.85 for three.
constexpr int few_rows(int group) {
  if (Vec::kColumns == 1) return 1;
  return group == kXGroup ? Ints::kRows : Ints::kRows - 1;
}
constexpr int kSumsRow = kPanelOutputs * kPanelsTogether;

// How a level sums the products of a group: Dot<kMost>, for bytes up to kMost, the bound that the form's bits
// set. add takes the words of kTogether inputs one at a time, from begin; end adds their result. kSigned:
// bytes count as u - 128.
template <class Dot>
constexpr int start_at = Dot::kSigned ? kSignedStartAt : kStartAt;

// Rows times N panels of a chunk of `groups` groups of 32 inputs.
struct ChunkRows {
  const PanelChunk* panels;
  int groups;
  const uint32_t* x;
  int64_t x_stride;
  float* sums;
  // Beside its eight words, group g prefetches `fetch_each` lines of each panel, from fetch_first + g *
  // fetch_each on.
  int fetch_first, fetch_each;
};

// total += scale of x * sum of the group * scale of the weights, and += their minima times the sum of x.
template <bool kMin, int M, int N>
inline void add_group(const ChunkRows& chunk, int weight_group, const uint32_t* x, int half,
                      const F (&sum)[M][N * kVecs], F (&total)[M][N * kVecs]) {
#pragma GCC unroll 8
  for (int j = 0; j < N * kVecs; ++j) {
    const PanelChunk& panel = chunk.panels[j / kVecs];
    const int lane = j % kVecs * Vec::kLanes;
    const F scale = Vec::load(panel.scales[weight_group] + lane);
#pragma GCC unroll 8
    for (int r = 0; r < M; ++r) {
      const F x_scale = Vec::broadcast(x + r * chunk.x_stride + kScaleAt);
      total[r][j] = Vec::fma(Vec::mul(sum[r][j], x_scale), scale, total[r][j]);
    }
    if constexpr (kMin) {
      const F min = Vec::load(panel.mins[weight_group] + lane);
#pragma GCC unroll 8
      for (int r = 0; r < M; ++r) {
        const F share = Vec::broadcast(x + r * chunk.x_stride + kShareAt + half);
        total[r][j] = Vec::fma(share, min, total[r][j]);
      }
    }
  }
}

template <int kGroup, bool kMin, int kMost, int M, int N>
void multiply_chunk(const ChunkRows& chunk) {
  constexpr int kColumns = N * kVecs, kHalves = kXGroup / kGroup, kWords = kGroup / 4;
  using Dot = Ints::Dot<kMost>;
  constexpr int kTogether = kWords < Dot::kTogether ? kWords : Dot::kTogether;
  F total[M][kColumns];
#pragma GCC unroll 8
  for (int r = 0; r < M; ++r) {
#pragma GCC unroll 8
    for (int j = 0; j < kColumns; ++j) total[r][j] = Vec::load(chunk.sums + r * kSumsRow + j * Vec::kLanes);
  }
  const uint32_t* x = chunk.x;
  const int64_t x_stride = chunk.x_stride;
  const int fetch_each = chunk.fetch_each;
  for (int g = 0; g < chunk.groups; ++g, x += kGroupWords) {
    const uint8_t *words[N], *ahead[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      const PanelChunk& panel = chunk.panels[n];
      words[n] = panel.words + g / 2 * panel.plane_stride + g % 2 * 8 * kWordBytes;
      ahead[n] = panel.ahead + (chunk.fetch_first + g * fetch_each) * kLine;
    }
#pragma GCC unroll 2
    for (int half = 0; half < kHalves; ++half) {
      Ints::Sum sum[M][kColumns];
#pragma GCC unroll 8
      for (int r = 0; r < M; ++r) {
        const Ints::Sum start = Ints::start(x + r * x_stride + start_at<Dot> + half);
#pragma GCC unroll 8
        for (int j = 0; j < kColumns; ++j) sum[r][j] = start;
      }
#pragma GCC unroll 8
      for (int first = half * kWords; first < (half + 1) * kWords; first += kTogether) {
        typename Dot::Part part[M][kColumns];
#pragma GCC unroll 8
        for (int r = 0; r < M; ++r) {
#pragma GCC unroll 8
          for (int j = 0; j < kColumns; ++j) part[r][j] = Dot::begin(sum[r][j]);
        }
#pragma GCC unroll 8
        for (int k = first; k < first + kTogether; ++k) {
          typename Dot::Operand u[kColumns];
#pragma GCC unroll 8
          for (int j = 0; j < kColumns; ++j) {
            const int n = j / kVecs, lane = j % kVecs;
            if (lane == 0) fetch_lines(ahead[n], k, fetch_each);
            u[j] = Dot::operand(Ints::load(words[n] + k * kWordBytes + lane * kVecBytes));
          }
#pragma GCC unroll 8
          for (int r = 0; r < M; ++r) {
            const uint32_t* const word = x + r * x_stride + k * Ints::kXWords;
#pragma GCC unroll 8
            for (int j = 0; j < kColumns; ++j) part[r][j] = Dot::add(part[r][j], u[j], word);
          }
        }
#pragma GCC unroll 8
        for (int r = 0; r < M; ++r) {
#pragma GCC unroll 8
          for (int j = 0; j < kColumns; ++j) sum[r][j] = Dot::end(sum[r][j], part[r][j]);
        }
      }
      F group_sum[M][kColumns];
#pragma GCC unroll 8
      for (int r = 0; r < M; ++r) {
#pragma GCC unroll 8
        for (int j = 0; j < kColumns; ++j) group_sum[r][j] = Ints::floats(sum[r][j]);
      }
      add_group<kMin, M, N>(chunk, g * kHalves + half, x, half, group_sum, total);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < M; ++r) {
#pragma GCC unroll 8
    for (int j = 0; j < kColumns; ++j) Vec::store(chunk.sums + r * kSumsRow + j * Vec::kLanes, total[r][j]);
  }
}

// One panel, from the planes in place: for few rows, unpacking bytes into the L1 cache does not pay.
template <int kGroup, bool kMin, int M, class Words>
void multiply_planes(const ChunkRows& chunk, const Words& words) {
  constexpr int kHalves = kXGroup / kGroup, kWords = kGroup / 4;
  using Dot = Ints::Dot<Words::kMost>;
  constexpr int kTogether = kWords < Dot::kTogether ? kWords : Dot::kTogether;
  F total[M][kVecs];
#pragma GCC unroll 8
  for (int r = 0; r < M; ++r) {
#pragma GCC unroll 8
    for (int j = 0; j < kVecs; ++j) total[r][j] = Vec::load(chunk.sums + r * kSumsRow + j * Vec::kLanes);
  }
  for (int g = 0; g < chunk.groups; g += 2) {
    const uint8_t* const planes = chunk.panels->words + g / 2 * chunk.panels->plane_stride;
    const uint8_t* const ahead = chunk.panels->ahead + (chunk.fetch_first + g * chunk.fetch_each) * kLine;
    const uint32_t* const x = chunk.x + g * kGroupWords;
    Ints::Sum sum[2 * kHalves][M][kVecs];
#pragma GCC unroll 4
    for (int i = 0; i < 2 * kHalves; ++i) {
#pragma GCC unroll 8
      for (int r = 0; r < M; ++r) {
        const uint32_t* const group = x + r * chunk.x_stride + i / kHalves * kGroupWords;
#pragma GCC unroll 8
        for (int j = 0; j < kVecs; ++j) sum[i][r][j] = Ints::start(group + start_at<Dot> + i % kHalves);
      }
    }
#pragma GCC unroll 8
    for (int from = 0; from < 8; from += kTogether) {
      Ints::Sum(&of_first)[M][kVecs] = sum[from / kWords];
      Ints::Sum(&of_second)[M][kVecs] = sum[kHalves + from / kWords];
      typename Dot::Part part[2][M][kVecs];
#pragma GCC unroll 8
      for (int r = 0; r < M; ++r) {
#pragma GCC unroll 8
        for (int j = 0; j < kVecs; ++j) {
          part[0][r][j] = Dot::begin(of_first[r][j]);
          part[1][r][j] = Dot::begin(of_second[r][j]);
        }
      }
#pragma GCC unroll 8
      for (int w = from; w < from + kTogether; ++w) {
        fetch_lines(ahead, w, 2 * chunk.fetch_each);
#pragma GCC unroll 8
        for (int j = 0; j < kVecs; ++j) {
          Ints::I first, second;
          words.load(planes + j * kVecBytes, w, first, second);
          const typename Dot::Operand a = Dot::operand(first), b = Dot::operand(second);
#pragma GCC unroll 8
          for (int r = 0; r < M; ++r) {
            const uint32_t* const word = x + r * chunk.x_stride + w * Ints::kXWords;
            part[0][r][j] = Dot::add(part[0][r][j], a, word);
            part[1][r][j] = Dot::add(part[1][r][j], b, word + kGroupWords);
          }
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < M; ++r) {
#pragma GCC unroll 8
        for (int j = 0; j < kVecs; ++j) {
          of_first[r][j] = Dot::end(of_first[r][j], part[0][r][j]);
          of_second[r][j] = Dot::end(of_second[r][j], part[1][r][j]);
        }
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < 2 * kHalves; ++i) {
      F group_sum[M][kVecs];
#pragma GCC unroll 8
      for (int r = 0; r < M; ++r) {
#pragma GCC unroll 8
        for (int j = 0; j < kVecs; ++j) group_sum[r][j] = Ints::floats(sum[i][r][j]);
      }
      add_group<kMin, M, 1>(chunk, g * kHalves + i, x + i / kHalves * kGroupWords, i % kHalves, group_sum,
                            total);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < M; ++r) {
#pragma GCC unroll 8
    for (int j = 0; j < kVecs; ++j) Vec::store(chunk.sums + r * kSumsRow + j * Vec::kLanes, total[r][j]);
  }
}

template <int kGroup, bool kMin, class Words>
struct MultiplyPlanes {
  const ChunkRows& chunk;
  const Words& words;

  template <int M, int N>
  void run() const {
    multiply_planes<kGroup, kMin, M>(chunk, words);
  }
};

template <int kGroup, bool kMin, int kMost>
struct MultiplyChunk {
  const ChunkRows& chunk;

  template <int M, int N>
  void run() const {
    multiply_chunk<kGroup, kMin, kMost, M, N>(chunk);
  }
};

// Calls body<group, has minima>().
template <class Body>
inline void with_groups(const QuantForm& form, const Body& body) {
  const bool min = form.has_min || form.has_zeros;
  if (form.group == kXGroup) {
    min ? body.template operator()<kXGroup, true>() : body.template operator()<kXGroup, false>();
  } else {
    min ? body.template operator()<16, true>() : body.template operator()<16, false>();
  }
}

// Calls body<most_of(form)>().
template <class Body>
inline void with_most(const QuantForm& form, const Body& body) {
  if constexpr (Ints::kBySize) {
    const int most = most_of(form);
    if (most == 15) return body.template operator()<15>();
    if (most == 31) return body.template operator()<31>();
    if (most == 63) return body.template operator()<63>();
  }
  body.template operator()<255>();
}

// Rows times panels of a chunk.
struct ChunkWork {
  const QuantBlock& block;
  PanelChunk* panels;
  int first_panel, num_panels;  // panel index within the sums
  int64_t first_input;
  int inputs;
  int row_blocks;  // blocks that share the prefetching

  int groups() const { return inputs / kXGroup; }
  // Panels from `panel` on times the i-th block of rows, from `row` on.
  ChunkRows rows(int i, int row, int panel) const {
    const int parts = row_blocks * groups(), each = (panels->lines + parts - 1) / parts;
    return {panels + panel,
            groups(),
            block.x + row * block.x_stride + first_input / kXGroup * kGroupWords,
            block.x_stride,
            block.sums + row * kSumsRow + (first_panel + panel) * kPanelOutputs,
            i * groups() * each,
            each};
  }
};

// From planes.
inline void multiply_few(const ChunkWork& work, int rows) {
  const QuantForm& form = work.block.form;
  for (int panel = 0; panel < work.num_panels; ++panel) {
    const ChunkRows chunk = work.rows(0, 0, panel);
    with_groups(form, [&]<int kGroup, bool kMin>() {
      with_plane_words(form, [&]<class Words>(const Words& words) {
        with_block<few_rows(kGroup), 1>(rows, 1, MultiplyPlanes<kGroup, kMin, Words>{chunk, words});
      });
    });
  }
}

// From bytes: planes are unpacked once for all rows.
inline void multiply_many(const ChunkWork& work, int rows) {
  const QuantForm& form = work.block.form;
  for (int panel = 0; panel < work.num_panels; ++panel) unpack_chunk(work.inputs, form, work.panels[panel]);
  const int blocks = work.row_blocks;
  for (int i = 0; i < blocks; ++i) {  // as even as possible
    const int row = i * rows / blocks, row_end = (i + 1) * rows / blocks;
    for (int panel = 0; panel < work.num_panels; panel += kQuantPanels) {
      const ChunkRows chunk = work.rows(i, row, panel);
      const int panels = min_of(work.num_panels - panel, kQuantPanels);
      with_groups(form, [&]<int kGroup, bool kMin>() {
        with_most(form, [&]<int kMost>() {
          const MultiplyChunk<kGroup, kMin, kMost> multiply{chunk};
          with_block<Ints::kRows, kQuantPanels>(row_end - row, panels, multiply);
        });
      });
    }
  }
}

// Takes one chunk of inputs at a time, with all rows. Many rows take two panels at a time and read x once for
// both; few rows take one, so that memory is read in order. Later lines are prefetched one by one beside the
// products, as many at once would stall them. This cuts the time of 8 to 16 rows to 0.78 to 0.82 in 8 bits,
// 0.91 in 6, 0.93 to 0.97 in 4 (Zen 4), and of one row in 4 bits to 0.80 (a Xeon with AMX).
inline void multiply_quantised(const QuantBlock& block, int rows, int num_panels) {
  PanelChunk chunks[kPanelsTogether];
  const QuantLayout& layout = block.layout;
  const int row_blocks = (rows + Ints::kRows - 1) / Ints::kRows;
  const int together = row_blocks > 1 ? kPanelsTogether : 1;
  const bool few = block.form.bits != 8 && rows <= few_rows(block.form.group);
  for (int panel = 0; panel < num_panels; panel += kPanelsTogether) {
    const int panels = min_of(num_panels - panel, kPanelsTogether);
    for (int i = 0; i < rows * kSumsRow; ++i) block.sums[i] = 0.0f;
    for (int n = 0; n < panels; n += together) {
      const int count = min_of(panels - n, together);
      const uint8_t* at = block.panels + (panel + n) * block.panel_bytes;
      for (int64_t first = 0; first < block.inputs; first += kChunkInputs) {
        const int64_t left = block.inputs - first;
        const int inputs = left < kChunkInputs ? static_cast<int>(left) : kChunkInputs;
        for (int i = 0; i < count; ++i) {
          begin_chunk(at + i * block.panel_bytes, inputs, block.form, layout, chunks[i]);
        }
        const ChunkWork work{block, chunks, n, count, first, inputs, row_blocks};
        few ? multiply_few(work, rows) : multiply_many(work, rows);
        at += inputs / layout.inputs * layout.bytes;
      }
    }
    for (int row = 0; row < rows; ++row) {
      float* const out = block.out + row * block.out_stride;
      const float* const sums = block.sums + row * kSumsRow;
      panels == 2 ? finish_row<2>(block, panel, sums, out) : finish_row<1>(block, panel, sums, out);
    }
  }
}

constexpr QuantKernels quantised_kernels() { return {kGroupWords, quantise_row, multiply_quantised}; }
