// Register-blocked products.
//
// A block is M rows x N columns of 16 words, kept in registers. Each output sums its terms one at a time in
// step order, so its bits depend neither on M and N nor on how steps are split among calls.
#pragma once

#include "cpu/kernels/vec_math-inl.h"

// Operand types. A word of the row is broadcast and multiplied by words of the page.
enum class Product {
  kFloats,     // both are floats
  kPairs,      // both are bfloat16 pairs, which one instruction multiplies and sums
  kHalves,     // the row has floats; a word of the page is two bfloat16, for two steps
  kBytes,      // the row has floats; the page is int8, one byte per word
  kBytePairs,  // kPairs; the page is int8, whose rows 2 j and 2 j + 1 form row j of pairs
};

// Whether words of the row are bfloat16 pairs.
constexpr bool multiplies_pairs(Product product) {
  return product == Product::kPairs || product == Product::kBytePairs;
}

// Steps per word of a page.
template <Product kProduct>
constexpr int kStepsPerWord = kProduct == Product::kHalves ? 2 : 1;

// V is Vec; as a template parameter, it lets levels without pairs omit the operation.
template <Product kProduct, class V = Vec>
inline Vec::F multiply_add(Vec::F a, Vec::F b, Vec::F sum) {
  if constexpr (multiplies_pairs(kProduct)) {
    return V::dot_pairs(a, b, sum);
  } else {
    return V::fma(a, b, sum);
  }
}

template <Product kProduct>
inline Vec::F operand(Vec::F words, int half) {
  if constexpr (kProduct == Product::kHalves) {
    return half == 0 ? Vec::low_half(words) : Vec::high_half(words);
  } else {
    return words;
  }
}

// Loads Vec::kLanes words of a page, from word i of the row of `width` words that begins at word `row`.
template <Product kProduct, class V = Vec>
inline Vec::F load_words(const uint32_t* page, int row, int i, int width) {
  const int8_t* bytes = reinterpret_cast<const int8_t*>(page);
  if constexpr (kProduct == Product::kBytes) {
    return Vec::load_int8(bytes + row + i);
  } else if constexpr (kProduct == Product::kBytePairs) {
    bytes += 2 * row + i;
    return V::pairs_of(Vec::load_int8(bytes), Vec::load_int8(bytes + width));
  } else {
    return Vec::load(page + row + i);
  }
}

// Pages to prefetch into the L2 cache while others are multiplied, one for each of those; pages null: none.
// Operand word i of a page is at word i >> shift in memory. A block of rows fetches every stride-th row of
// words of a page, from `first` on, so that blocks share the prefetching: outstanding loads must fit the
// core's few line fill buffers.
struct Ahead {
  const uint32_t* const* pages = nullptr;
  int shift = 0;
  int first = 0, stride = 1;

  void fetch(int page, int i) const { __builtin_prefetch(pages[page] + (i >> shift), 0, 2); }
};

// sum[r][j] += a[r * a_stride + half] * operand of words[j], for one half of the words, then the other.
template <Product kProduct, int M, int kColumns>
inline void add_products(const uint32_t* a, int a_stride, const Vec::F (&words)[kColumns],
                         Vec::F (&sum)[M][kColumns]) {
#pragma GCC unroll 2
  for (int half = 0; half < kStepsPerWord<kProduct>; ++half) {
    Vec::F b[kColumns];
#pragma GCC unroll 8
    for (int j = 0; j < kColumns; ++j) b[j] = operand<kProduct>(words[j], half);
#pragma GCC unroll 8
    for (int r = 0; r < M; ++r) {
      const Vec::F factor = Vec::broadcast(a + r * a_stride + half);
#pragma GCC unroll 8
      for (int j = 0; j < kColumns; ++j) sum[r][j] = multiply_add<kProduct>(factor, b[j], sum[r][j]);
    }
  }
}

// s[r][16 n + t] (+)= sum over step of q[r][step] * k[n][step][t]: N pages of 16 tokens. Prefetches `ahead`
// meanwhile.
template <Product kProduct, int M, int N>
void score_block(const uint32_t* q, int q_stride, const uint32_t* const* k, int begin, int end, Ahead ahead,
                 uint32_t* s) {
  constexpr int kColumns = N * kVecs;
  Vec::F sum[M][kColumns];
#pragma GCC unroll 8
  for (int r = 0; r < M; ++r) {
#pragma GCC unroll 8
    for (int j = 0; j < kColumns; ++j) {
      sum[r][j] = begin == 0 ? Vec::set1(0.0f) : Vec::load(s + r * kScoreRow + j * Vec::kLanes);
    }
  }
  constexpr int kSteps = kStepsPerWord<kProduct>;
  int fetched = ahead.pages == nullptr ? end : begin + ahead.first * kSteps;
  for (int step = begin; step < end; step += kSteps) {
    Vec::F words[kColumns];
#pragma GCC unroll 8
    for (int j = 0; j < kColumns; ++j) {
      words[j] = load_words<kProduct>(k[j / kVecs], step / kSteps * 16, j % kVecs * Vec::kLanes, 16);
    }
    if (step == fetched) {
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) ahead.fetch(n, step / kSteps * 16);
      fetched += ahead.stride * kSteps;
    }
    add_products<kProduct>(q + step, q_stride, words, sum);
  }
#pragma GCC unroll 8
  for (int r = 0; r < M; ++r) {
#pragma GCC unroll 8
    for (int j = 0; j < kColumns; ++j) Vec::store(s + r * kScoreRow + j * Vec::kLanes, sum[r][j]);
  }
}

// acc[r][c] += sum over pages and steps of p[r][page][step] * v[page][step][c], for 16 N channels c. `ahead`:
// as in score_block.
template <Product kProduct, int M, int N>
void value_block(const uint32_t* p, const uint32_t* const* v, int num_pages, int steps, int channel,
                 int head_dim, Ahead ahead, float* acc) {
  constexpr int kColumns = N * kVecs;
  Vec::F sum[M][kColumns];
#pragma GCC unroll 8
  for (int r = 0; r < M; ++r) {
#pragma GCC unroll 8
    for (int j = 0; j < kColumns; ++j) sum[r][j] = Vec::load(acc + r * head_dim + j * Vec::kLanes);
  }
  constexpr int kSteps = kStepsPerWord<kProduct>;
  for (int page = 0; page < num_pages; ++page) {
    int row = 0, fetched = ahead.pages == nullptr ? steps : ahead.first * kSteps;
    for (int step = 0; step < steps; step += kSteps, row += head_dim, p += kSteps) {
      Vec::F words[kColumns];
#pragma GCC unroll 8
      for (int j = 0; j < kColumns; ++j) {
        words[j] = load_words<kProduct>(v[page], row, channel + j * Vec::kLanes, head_dim);
      }
      if (step == fetched) {
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) ahead.fetch(page, row + channel + n * 16);
        fetched += ahead.stride * kSteps;
      }
      add_products<kProduct>(p, kScoreRow, words, sum);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < M; ++r) {
#pragma GCC unroll 8
    for (int j = 0; j < kColumns; ++j) Vec::store(acc + r * head_dim + j * Vec::kLanes, sum[r][j]);
  }
}

inline int min_of(int a, int b) { return a < b ? a : b; }
inline int max_of(int a, int b) { return a > b ? a : b; }

// Largest part when `n` is cut into the fewest parts of at most `limit`, as evenly as possible: 8 rows are 4
// + 4, not 6 + 2, because a small block cannot hide the latency of its sums.
inline int even_part(int n, int limit) {
  const int parts = (n + limit - 1) / limit;
  return (n + parts - 1) / parts;
}

// Calls body.template run<M, n>() for 1 <= n <= N.
template <int M, int N, class Body>
inline void with_columns(int n, const Body& body) {
  if constexpr (N > 1) {
    if (n < N) return with_columns<M, N - 1>(n, body);
  }
  body.template run<M, N>();
}

// Calls body.template run<m, n>() for 1 <= m <= M and 1 <= n <= N.
template <int M, int N, class Body>
inline void with_block(int m, int n, const Body& body) {
  if constexpr (M > 1) {
    if (m < M) return with_block<M - 1, N>(m, n, body);
  }
  with_columns<M, N>(n, body);
}

// Scores of M rows against N pages, words [begin, end) of a row.
template <Product kProduct>
struct ScoreRows {
  const uint32_t* q;
  int q_stride;
  const uint32_t* const* k;
  int begin, end;
  uint32_t* s;
  Ahead ahead{};

  template <int M, int N>
  void run() const {
    score_block<kProduct, M, N>(q, q_stride, k, begin, end, ahead, s);
  }
};

// Values of `num_pages` pages for M rows and 16 N channels.
template <Product kProduct>
struct ValueRows {
  const uint32_t* p;
  const uint32_t* const* v;
  int num_pages, steps, channel, head_dim;
  float* acc;
  Ahead ahead{};

  template <int M, int N>
  void run() const {
    value_block<kProduct, M, N>(p, v, num_pages, steps, channel, head_dim, ahead, acc);
  }
};
