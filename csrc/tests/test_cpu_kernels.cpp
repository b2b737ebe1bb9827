// Random trees through every instruction-set level, meant to run under the sanitizers: pools end where their
// last page ends, so out-of-bounds reads are detected. In this build the levels avx512_bf16 and amx run an
// emulated dot product if the CPU has AVX-512. The comparison over all shapes is in
// tests/kernels/test_tree_attention.py.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "common/error.h"
#include "cpu/kv_ops.h"
#include "cpu/runtime/isa.h"
#include "cpu/score_pages.h"
#include "cpu/select_top_pages.h"
#include "cpu/tree_attention.h"
#include "tests/check.h"
#include "tests/levels.h"
#include "tree/plan.h"

namespace tts {
namespace {

using Random = std::mt19937;

int draw(Random& random, int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); }

uint16_t to_bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return static_cast<uint16_t>(bits >> 16);
}

float to_float(uint16_t x) {
  const uint32_t bits = uint32_t{x} << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
float to_float(float x) { return x; }
float to_float(int8_t x) { return x; }

// Element type of new keys, values and queries: the pages' dtype; for int8 pages float by default.
template <class Element>
struct RowOf {
  using Type = Element;
};
template <>
struct RowOf<int8_t> {
  using Type = float;
};

template <class Element>
std::vector<Element> random_values(Random& random, size_t n) {
  std::normal_distribution<float> normal;
  std::vector<Element> values(n);
  for (Element& value : values) {
    if constexpr (sizeof(Element) == 2) {
      value = to_bfloat16(normal(random));
    } else {
      value = normal(random);
    }
  }
  return values;
}

// Branches that share a random part of an earlier one's pages, over one layer; slots without a token hold
// NaN. Element: of the pages; RowElement: of keys, values and queries.
template <class Element, class RowElement = typename RowOf<Element>::Type>
struct Forest {
  using Row = RowElement;
  static constexpr bool kInt8 = sizeof(Element) == 1;
  static constexpr DType kRowDType = sizeof(Row) == 2 ? DType::kBFloat16 : DType::kFloat32;
  static constexpr DType kDType = kInt8 ? DType::kInt8 : kRowDType;

  int kv_heads, group, head_dim, num_pages = 0, num_queries = 0, width = 0, window;
  float soft_cap;
  std::vector<std::vector<int32_t>> tables;
  std::vector<int32_t> lengths, query_lens;
  std::vector<Element> k, v;
  std::vector<Row> q;
  std::vector<float> scales;

  explicit Forest(Random& random)
      : kv_heads(draw(random, 1, 2)),
        group(draw(random, 1, 5)),
        head_dim(16 * draw(random, 2, 9)),
        window(draw(random, 0, 1) * draw(random, 1, 400)),
        soft_cap(static_cast<float>(draw(random, 0, 1) * 20)) {
    const int branches = draw(random, 1, 6);
    for (int b = 0; b < branches; ++b) {
      const int parent = draw(random, 0, std::max(b - 1, 0)),
                shared = b > 0 ? draw(random, 0, lengths[parent]) : 0;
      const int length =
          std::max(1, shared + draw(random, -8, 8) + draw(random, 0, 1) * draw(random, 0, 1200));
      std::vector<int32_t> table;
      for (int page = 0; page * kPageSize < length; ++page) {
        table.push_back(page * kPageSize < shared ? tables[parent][page] : num_pages++);
      }
      width = std::max(width, static_cast<int>(table.size()));
      tables.push_back(table);
      lengths.push_back(length);
      query_lens.push_back(draw(random, 1, std::min(length, 20)));
      num_queries += query_lens.back();
    }
    fill(random);
  }

  KVView view() {
    const int64_t head = int64_t{kPageSize} * head_dim;
    return {k.data(),
            v.data(),
            kv_heads * head,
            head,
            kv_heads * head,
            head,
            num_pages,
            kv_heads,
            head_dim,
            kDType,
            kInt8 ? scales.data() : nullptr};
  }

  TokenRows rows(std::vector<Row>& values, int heads) {
    return {values.data(), int64_t{heads} * head_dim, head_dim, kRowDType};
  }

  void fill(Random& random) {
    Element nan;  // in int8 pages any byte: their scales are NaN
    if constexpr (kInt8) {
      nan = 85;
    } else {
      nan = sizeof(Element) == 2 ? static_cast<Element>(0x7fc0) : static_cast<Element>(NAN);
    }
    k.assign(static_cast<size_t>(num_pages) * kv_heads * kPageSize * head_dim, nan);
    v = k;
    scales.assign(static_cast<size_t>(num_pages) * kv_heads * 2, NAN);
    for (size_t b = 0; b < tables.size(); ++b) {
      std::vector<int32_t> slots;
      for (int p = 0; p < lengths[b]; ++p)
        slots.push_back(tables[b][p / kPageSize] * kPageSize + p % kPageSize);
      auto new_k = random_values<Row>(random, slots.size() * kv_heads * head_dim);
      auto new_v = random_values<Row>(random, slots.size() * kv_heads * head_dim);
      append_kv(view(), rows(new_k, kv_heads), rows(new_v, kv_heads), slots.data(), lengths[b], {}, 2);
    }
    q = random_values<Row>(random, static_cast<size_t>(num_queries) * kv_heads * group * head_dim);
  }

  TreePlan make_plan(int query_block) const {
    std::vector<int32_t> table(tables.size() * width, -1);
    for (size_t b = 0; b < tables.size(); ++b)
      std::copy(tables[b].begin(), tables[b].end(), &table[b * width]);
    return plan({table.data(), lengths.data(), query_lens.data(), static_cast<int64_t>(tables.size()), width,
                 kPageSize, query_block});
  }

  TreeAttentionParams params(const TreePlan& plan, std::vector<Row>& out, std::vector<float>& lse) {
    const int heads = kv_heads * group;
    out.assign(q.size(), Row{});
    lse.assign(static_cast<size_t>(num_queries) * heads, NAN);
    const PlanView view_of_plan{plan.query_order.data(),
                                plan.query_position.data(),
                                plan.blocks.data(),
                                plan.segments.data(),
                                plan.pages.data(),
                                num_queries,
                                static_cast<int64_t>(plan.blocks.size()),
                                static_cast<int64_t>(plan.segments.size()),
                                static_cast<int64_t>(plan.pages.size())};
    return {view(),   view_of_plan, q.data(),   kRowDType,  int64_t{heads} * head_dim,
            head_dim, heads,        out.data(), lse.data(), 1 / std::sqrt(static_cast<float>(head_dim)),
            window,   soft_cap};
  }

  // One row by the definition, in double.
  std::vector<double> expected(int branch, int query, int row, int head, double* lse) {
    const KVView pool = view();
    const int position = lengths[branch] - query_lens[branch] + query;
    const int first = window > 0 ? std::max(position - window + 1, 0) : 0;
    const auto scale = [&](int p, int which) {
      return kInt8 ? double{page_scales(pool, tables[branch][p / kPageSize], head / group)[which]} : 1.0;
    };
    const Row* q_row = &q[(static_cast<size_t>(row) * kv_heads * group + head) * head_dim];
    std::vector<double> logits, out(static_cast<size_t>(head_dim));
    for (int p = first; p <= position; ++p) {
      const Element* page = k_page<Element>(pool, tables[branch][p / kPageSize], head / group);
      double s = 0;
      for (int c = 0; c < head_dim; ++c)
        s += double{to_float(q_row[c])} * to_float(page[k_index<Element>(p % kPageSize, c)]);
      s *= scale(p, 0) / std::sqrt(static_cast<double>(head_dim));
      logits.push_back(soft_cap > 0 ? soft_cap * std::tanh(s / soft_cap) : s);
    }
    const double largest = *std::max_element(logits.begin(), logits.end());
    double sum = 0;
    for (double s : logits) sum += std::exp(s - largest);
    for (int p = first; p <= position; ++p) {
      const Element* page = v_page<Element>(pool, tables[branch][p / kPageSize], head / group);
      const double weight = std::exp(logits[p - first] - largest) / sum * scale(p, 1);
      for (int c = 0; c < head_dim; ++c)
        out[c] += weight * to_float(page[v_index<Element>(p % kPageSize, c, head_dim)]);
    }
    *lse = largest + std::log(sum);
    return out;
  }

  bool close(const std::vector<Row>& out, const std::vector<float>& lse) {
    // bfloat16 outputs have a relative rounding error of 2^-9; probabilities too if pairs are multiplied.
    const double relative = sizeof(Row) == 2 ? 1.0 / 128 : 1e-5,
                 absolute = sizeof(Row) == 2 ? 1.0 / 256 : 1e-5;
    bool all = true;
    int row = 0;
    for (size_t b = 0; b < tables.size(); ++b) {
      for (int i = 0; i < query_lens[b]; ++i, ++row) {
        for (int head = 0; head < kv_heads * group; ++head) {
          const size_t index = static_cast<size_t>(row) * kv_heads * group + head;
          double lse_expected;
          const std::vector<double> e = expected(static_cast<int>(b), i, row, head, &lse_expected);
          all &= std::abs(lse[index] - lse_expected) < 1e-4;
          for (int c = 0; c < head_dim; ++c) {
            all &=
                std::abs(to_float(out[index * head_dim + c]) - e[c]) <= absolute + relative * std::abs(e[c]);
          }
        }
      }
    }
    return all;
  }
};

template <class Pages>
void test_forest(uint32_t seed) {
  Random random(seed);
  Pages forest(random);
  std::vector<typename Pages::Row> out, other;
  std::vector<float> lse, other_lse;
  const TreePlan wide = forest.make_plan(32), narrow = forest.make_plan(draw(random, 1, 9));
  tree_attention(forest.params(wide, out, lse), 1);
  CHECK(forest.close(out, lse));
  tree_attention(forest.params(narrow, other, other_lse), 3);
  CHECK(std::memcmp(out.data(), other.data(), out.size() * sizeof(out[0])) == 0);
  CHECK(std::memcmp(lse.data(), other_lse.data(), lse.size() * sizeof(float)) == 0);

  TreePlan broken = wide;
  broken.pages[static_cast<size_t>(draw(random, 0, static_cast<int>(broken.pages.size()) - 1))] =
      forest.num_pages;
  CHECK_THROWS(tree_attention(forest.params(broken, other, other_lse), 2), ArgumentError);
  CHECK(std::all_of(other_lse.begin(), other_lse.end(), [](float x) { return std::isnan(x); }));
}

// With power-of-two scales and bfloat16 queries, int8 pages give the same bits as bfloat16 pages of equal
// values.
void test_int8_beside_bfloat16(uint32_t seed) {
  Random random(seed), again(seed);
  Forest<int8_t, uint16_t> bytes(random);
  Forest<uint16_t> pairs(again);  // the same tree and queries
  for (float& scale : bytes.scales) scale = std::ldexp(1.0f, draw(random, -8, -5));
  const KVView from = bytes.view(), to = pairs.view();
  for (int page = 0; page < bytes.num_pages; ++page) {
    for (int head = 0; head < bytes.kv_heads; ++head) {
      const float* scales = page_scales(from, page, head);
      for (int t = 0; t < kPageSize; ++t) {
        for (int c = 0; c < bytes.head_dim; ++c) {
          k_page<uint16_t>(to, page, head)[k_index<uint16_t>(t, c)] =
              to_bfloat16(k_page<int8_t>(from, page, head)[k_index<int8_t>(t, c)] * scales[0]);
          v_page<uint16_t>(to, page, head)[v_index<uint16_t>(t, c, bytes.head_dim)] = to_bfloat16(
              v_page<int8_t>(from, page, head)[v_index<int8_t>(t, c, bytes.head_dim)] * scales[1]);
        }
      }
    }
  }
  std::vector<uint16_t> out, expected;
  std::vector<float> lse, expected_lse;
  const TreePlan plan = bytes.make_plan(draw(random, 1, 32));
  tree_attention(bytes.params(plan, out, lse), 2);
  tree_attention(pairs.params(plan, expected, expected_lse), 2);
  CHECK(out == expected);
  CHECK(lse == expected_lse);
}

// Scores, a selection and attention over it: the same bits with other blocks and more threads; selecting
// everything equals dense attention; masses sum to 1.
template <class Pages>
void test_sparse(uint32_t seed) {
  Random random(seed);
  Pages forest(random);
  const int heads = forest.kv_heads, vectors = std::array{1, 2, kQuarters}[draw(random, 0, 2)],
            width = forest.width;
  const size_t rows = static_cast<size_t>(heads) * forest.num_queries, words = (width + 31u) / 32;
  // Only the summaries of pages in use, so that out-of-bounds reads are detected.
  std::vector<float> summaries(static_cast<size_t>(forest.num_pages) * heads * vectors *
                               summary_channels(vectors, forest.head_dim));
  std::normal_distribution<float> normal;
  for (float& x : summaries) x = normal(random);

  std::vector<typename Pages::Row> out, other, dense;
  std::vector<float> lse, other_lse, mass(rows * width), other_mass(rows * width), scores(rows * width);
  std::vector<int32_t> mask(rows * words),
      budget(static_cast<size_t>(forest.num_queries), draw(random, 1, 30));
  const TreePlan wide = forest.make_plan(32), narrow = forest.make_plan(draw(random, 1, 9));
  const auto attend = [&](const TreePlan& plan, auto& to, auto& to_lse, auto& to_mass, int threads) {
    TreeAttentionParams params = forest.params(plan, to, to_lse);
    params.mask = mask.data();
    params.mask_words = static_cast<int64_t>(words);
    params.mass = to_mass.data();
    params.mass_columns = width;
    tree_attention(params, threads);
  };
  const TreeAttentionParams params = forest.params(wide, out, lse);
  score_pages({{summaries.data(), vectors},
               forest.num_pages,
               heads,
               forest.head_dim,
               DType::kFloat32,
               params.plan,
               forest.q.data(),
               forest.kRowDType,
               params.q_token_stride,
               params.q_head_stride,
               params.num_q_heads,
               params.scale,
               scores.data(),
               width},
              2);
  for (size_t row = 0; row < rows; ++row) {
    double sum = 0;
    for (int c = 0; c < width; ++c) sum += double{scores[row * width + c]};
    CHECK(std::abs(sum - 1) < 1e-4);
  }
  std::vector<int32_t> tails(forest.num_queries), groups(forest.num_queries);
  for (int32_t& tail : tails) tail = draw(random, 0, 2 * width);
  for (int32_t& group : groups) group = draw(random, 0, std::min<int>(2, forest.num_queries - 1));
  select_top_pages(
      {scores.data(), heads, forest.num_queries, width, wide.query_order.data(), wide.query_position.data(),
       wide.branches.data(), static_cast<int64_t>(wide.branches.size()), budget.data(), INFINITY, 1, 2,
       draw(random, 0, 1) == 1 ? tails.data() : nullptr, draw(random, 0, 1) == 1 ? groups.data() : nullptr,
       mask.data()},
      2);
  attend(wide, out, lse, mass, 1);
  attend(narrow, other, other_lse, other_mass, 3);
  CHECK(std::memcmp(out.data(), other.data(), out.size() * sizeof(out[0])) == 0);
  CHECK(lse == other_lse);
  CHECK(mass == other_mass);
  for (size_t row = 0; row < rows && forest.window == 0; ++row) {
    double sum = 0;
    for (int c = 0; c < width; ++c) sum += double{mass[row * width + c]};
    CHECK(std::abs(sum - 1) < 1e-4);
  }
  std::fill(mask.begin(), mask.end(), -1);
  attend(narrow, other, other_lse, other_mass, 1);
  tree_attention(forest.params(wide, dense, lse), 1);
  CHECK(std::memcmp(dense.data(), other.data(), dense.size() * sizeof(dense[0])) == 0);
  CHECK(lse == other_lse);
}

void test_kv_ops(uint32_t seed) {
  Random random(seed);
  Forest<uint16_t> forest(random);
  const int branch = static_cast<int>(forest.tables.size()) - 1, length = forest.lengths[branch];
  const std::vector<int32_t>& table = forest.tables[branch];
  const size_t n = static_cast<size_t>(length) * forest.kv_heads * forest.head_dim;
  std::vector<uint16_t> k(n), v(n), k_copy(n), v_copy(n);
  const auto gather = [&](const std::vector<int32_t>& pages, std::vector<uint16_t>& to_k,
                          std::vector<uint16_t>& to_v) {
    gather_kv(forest.view(), pages.data(), static_cast<int64_t>(pages.size()), length,
              forest.rows(to_k, forest.kv_heads), forest.rows(to_v, forest.kv_heads), 2);
  };
  gather(table, k, v);
  // Copies of all pages to the end of a larger pool must read back the same.
  std::vector<int32_t> copies, copied;
  for (const int32_t page : table) {
    copied.push_back(forest.num_pages + static_cast<int>(copied.size()));
    copies.insert(copies.end(), {page, copied.back()});
  }
  CHECK_THROWS(copy_pages(forest.view(), 1, 0, 0, copies.data(), static_cast<int64_t>(table.size()), {}, 2),
               ArgumentError);
  forest.num_pages += static_cast<int>(table.size());
  forest.k.resize(static_cast<size_t>(forest.num_pages) * forest.kv_heads * kPageSize * forest.head_dim);
  forest.v.resize(forest.k.size());
  copy_pages(forest.view(), 1, 0, 0, copies.data(), static_cast<int64_t>(table.size()), {}, 2);
  gather(copied, k_copy, v_copy);
  CHECK(k == k_copy);
  CHECK(v == v_copy);
  CHECK_THROWS(gather({-1}, k_copy, v_copy), ArgumentError);
}

}  // namespace
}  // namespace tts

// Argument: number of random cases; all 15 take long in an emulator.
int main(int argc, char** argv) {
  const uint32_t cases = argc > 1 ? static_cast<uint32_t>(std::atoi(argv[1])) : 15;
  tts::test::at_each_level(cases, [](uint32_t seed) {
    using namespace tts;
    test_forest<Forest<float>>(seed);
    test_forest<Forest<uint16_t>>(seed);
    test_forest<Forest<int8_t>>(seed);
    test_forest<Forest<int8_t, uint16_t>>(seed);
    test_int8_beside_bfloat16(seed);
    test_sparse<Forest<float>>(seed);
    test_sparse<Forest<uint16_t>>(seed);
    test_sparse<Forest<int8_t>>(seed);
    test_sparse<Forest<int8_t, uint16_t>>(seed);
  });
  for (uint32_t seed = 0; seed < 10; ++seed) tts::test_kv_ops(seed);
  CHECK_THROWS(tts::set_cpu_isa("sse9"), tts::ArgumentError);
  return tts::test::failures() == 0 ? 0 : 1;
}
