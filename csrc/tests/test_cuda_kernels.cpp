// The CUDA kernels on the CPU (cuda_shim), meant to run under the sanitizers: random trees planned by
// WorkPlanner, against attention in double precision. Memory ends where the last page ends, and slots that no
// branch holds are NaN.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "common/plan_records.h"
#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"
#include "cuda/tree_attention.h"
#include "tests/check.h"
#include "tests/cuda_shim/float16.h"
#include "tests/cuda_shim/random.h"
#include "tree/work_plan.h"

namespace tts::cuda {
namespace {

using Halves = std::vector<uint16_t>;

constexpr uint16_t kNan = 0x7fff;  // in both formats

// --- storage ---

// [pages, heads, page_size, head_dim] in its own memory, in one of the layouts that users have.
enum class Layout { kHND, kNHD, kHalvesOfRow, kUnaligned };

struct Shape {
  int pages, heads, page_size, head_dim;
};

template <class Element>
struct Storage {
  std::vector<Element> memory;
  PageTensor k, v;

  Storage(Layout layout, const Shape& s, Element fill) {
    const int64_t d = s.head_dim, n = s.page_size, h = s.heads;
    int64_t page = h * n * d, head = n * d, token = d, v_at = page * s.pages, k_at = 0;
    if (layout == Layout::kNHD) {
      head = d;
      token = h * d;
    } else if (layout == Layout::kHalvesOfRow) {
      page *= 2, head *= 2, token *= 2;
      v_at = d;
    } else if (layout == Layout::kUnaligned) {
      token = d + 1;
      head = n * token;
      page = h * head + 3;
      k_at = 1;
      v_at = page * s.pages + 1;
    }
    memory.assign(static_cast<size_t>(v_at + (s.pages - 1) * page + (h - 1) * head + (n - 1) * token + d),
                  fill);
    k = {memory.data() + k_at, page, head, token};
    v = {memory.data() + v_at, page, head, token};
  }

  static Element& at(const PageTensor& tensor, int64_t page, int64_t head, int64_t token, int64_t channel) {
    return static_cast<Element*>(tensor.data)[page * tensor.page_stride + head * tensor.head_stride +
                                              token * tensor.token_stride + channel];
  }
};

template <class Element>
void test_storage(Random& random, Layout layout) {
  const Shape s = {draw(random, 3, 9), draw(random, 1, 5), pick(random, {1, 3, 16}), 8 * draw(random, 2, 12)};
  Storage<Element> storage(layout, s, 0);
  const Pages pages = {
      storage.k, storage.v, s.pages, s.heads, s.page_size, s.head_dim, static_cast<int32_t>(sizeof(Element))};
  std::vector<Element> expected = storage.memory;
  const auto expect = [&](const PageTensor& tensor) {
    return PageTensor{expected.data() + (static_cast<Element*>(tensor.data) - storage.memory.data()),
                      tensor.page_stride, tensor.head_stride, tensor.token_stride};
  };
  const PageTensor k = expect(storage.k), v = expect(storage.v);

  std::vector<int32_t> slots(s.pages * s.page_size);
  for (size_t i = 0; i < slots.size(); ++i) slots[i] = static_cast<int32_t>(i);
  std::shuffle(slots.begin(), slots.end(), random);
  slots.resize((slots.size() + 1) / 2);
  slots.insert(slots.begin(), {-1, s.pages * s.page_size, INT32_MIN, INT32_MAX});
  const int64_t tokens = std::ssize(slots), row = s.heads * s.head_dim;
  std::vector<Element> kv(static_cast<size_t>(2 * tokens * row));  // K and V of a token side by side
  for (Element& x : kv) x = static_cast<Element>(random());
  append_kv(pages, {kv.data(), 2 * row, s.head_dim}, {kv.data() + row, 2 * row, s.head_dim}, slots.data(),
            tokens, nullptr);
  for (int64_t t = 4; t < tokens; ++t) {
    for (int64_t i = 0; i < row; ++i) {
      const int64_t page = slots[t] / s.page_size, offset = slots[t] % s.page_size;
      Storage<Element>::at(k, page, i / s.head_dim, offset, i % s.head_dim) = kv[2 * t * row + i];
      Storage<Element>::at(v, page, i / s.head_dim, offset, i % s.head_dim) = kv[(2 * t + 1) * row + i];
    }
  }
  CHECK(storage.memory == expected);

  // The lower half of the pages in each of two layers, the pool's halves here.
  const int half = s.pages / 2;
  const std::vector<int32_t> copies = {0, half - 1, -1, 0, 0, half, half, 0};
  const Pages layer = {storage.k, storage.v, half, s.heads, s.page_size, s.head_dim, pages.element_bytes};
  copy_pages(layer, 2, half * storage.k.page_stride, half * storage.v.page_stride, copies.data(), 4, nullptr);
  for (int first = 0; first <= half; first += half) {
    for (int64_t head = 0; head < s.heads; ++head) {
      for (int64_t token = 0; token < s.page_size; ++token) {
        for (const PageTensor& tensor : {k, v}) {
          const Element* source = &Storage<Element>::at(tensor, first, head, token, 0);
          std::copy_n(source, s.head_dim, &Storage<Element>::at(tensor, first + half - 1, head, token, 0));
        }
      }
    }
  }
  CHECK(storage.memory == expected);
}

// --- attention ---

struct Counts {
  int direct = 0, partial = 0, low = 0, high = 0, merged = 0, holes = 0, sinks = 0;  // of all cases
} covered;

struct Forest {
  DType dtype;
  Shape shape;
  int group, window, num_queries = 0, width = 0;
  float scale, soft_cap;
  std::vector<std::vector<int32_t>> tables;
  std::vector<int32_t> lengths, query_lens;
  Storage<uint16_t> storage;
  std::vector<float> sinks;  // [heads * group], or empty
  Halves q;
  int64_t q_row;  // stride; rows of q lie apart

  Forest(Random& random, DType type, int head_dim, Layout layout)
      : dtype(type),
        shape{0, draw(random, 1, 2), pick(random, {1, 16, 16, 64}), head_dim},
        group(pick(random, {1, 2, 3, 4, 7, 16})),
        window(draw(random, 0, 2) == 0 ? draw(random, 1, 300) : 0),
        scale(pick(random, {0.08f, 0.2f})),
        soft_cap(draw(random, 0, 2) == 0 ? 3.0f : 0.0f),
        storage(grow(random, layout)) {
    q_row = int64_t{shape.heads} * group * head_dim + (layout == Layout::kUnaligned ? 5 : 8);
    q.assign(static_cast<size_t>(num_queries * q_row), kNan);
    for (int64_t i = 0; i < num_queries * q_row; ++i) {
      if (i % q_row < shape.heads * group * head_dim) q[i] = random_value(random, dtype);
    }
    if (draw(random, 0, 1) == 0) return;
    for (int head = 0; head < shape.heads * group; ++head) {
      sinks.push_back(draw(random, 0, 7) == 0 ? -INFINITY : static_cast<float>(draw(random, -60, 60)) / 10);
    }
    ++covered.sinks;
  }

  // Grows branches that share a random part of an earlier branch's pages, including holes, and evict pages of
  // their own.
  Storage<uint16_t> grow(Random& random, Layout layout) {
    const int n = shape.page_size, branches = draw(random, 1, 9);
    for (int b = 0; b < branches; ++b) {
      const int parent = b > 0 ? draw(random, 0, b - 1) : 0;
      const int shared = b > 0 && draw(random, 0, 5) > 0 ? draw(random, 0, lengths[parent]) / n * n : 0;
      const int fresh = draw(random, 1, 20) + draw(random, 0, 1) * draw(random, 0, 250);
      const int length = shared + fresh;
      std::vector<int32_t> table;
      for (int page = 0; page * n < length; ++page) {
        table.push_back(page * n < shared ? tables[parent][page] : shape.pages++);
      }
      query_lens.push_back(draw(random, 0, 2) == 0 ? draw(random, 0, std::min(length, 24)) : 1);
      const int old_pages = (length - std::max(query_lens.back(), 1)) / n;  // without a query in them
      if (draw(random, 0, 2) == 0) {
        for (int page = 0; page < old_pages; ++page) {
          if (draw(random, 0, 2) == 0) table[page] = kHole;
        }
      }
      covered.holes += std::count(table.begin(), table.end(), kHole);
      width = std::max(width, static_cast<int>(table.size()));
      tables.push_back(table);
      lengths.push_back(length);
      num_queries += query_lens.back();
    }
    Storage<uint16_t> result(layout, shape, kNan);
    for (size_t b = 0; b < tables.size(); ++b) {
      for (int p = 0; p < lengths[b]; ++p) {
        if (tables[b][p / n] == kHole) continue;
        for (const PageTensor& tensor : {result.k, result.v}) {
          for (int i = 0; i < shape.heads * shape.head_dim; ++i) {
            result.at(tensor, tables[b][p / n], i / shape.head_dim, p % n, i % shape.head_dim) =
                random_value(random, dtype);
          }
        }
      }
    }
    return result;
  }

  BranchTables branch_tables(std::vector<int32_t>& flat) const {
    flat.assign(tables.size() * width, -1);
    for (size_t b = 0; b < tables.size(); ++b)
      std::copy(tables[b].begin(), tables[b].end(), &flat[b * width]);
    return {flat.data(), lengths.data(), query_lens.data(), std::ssize(tables), width, shape.page_size};
  }

  // [length, head_dim] of one branch and KV head; NaN in holes.
  std::vector<float> gather(const PageTensor& tensor, size_t branch, int kv_head) const {
    std::vector<float> values;
    for (int p = 0; p < lengths[branch]; ++p) {
      const int page = tables[branch][p / shape.page_size];
      if (page == kHole) {
        values.insert(values.end(), shape.head_dim, NAN);
        continue;
      }
      const uint16_t* row = &storage.at(tensor, page, kv_head, p % shape.page_size, 0);
      for (int i = 0; i < shape.head_dim; ++i) values.push_back(shim::to_float(dtype, row[i]));
    }
    return values;
  }

  // Checks one row of out and lse, for a head of q that sees k and v up to `position`, and its sink.
  // Probabilities and results have a relative rounding error of at most `unit`.
  bool close(const std::vector<float>& k, const std::vector<float>& v, int position, double sink,
             const uint16_t* query, const uint16_t* out, float lse) const {
    const double unit = dtype == DType::kBFloat16 ? 1.0 / 256 : 1.0 / 2048;
    const int d = shape.head_dim;
    std::vector<double> logits, sum(d), magnitude(d);
    const int first = window > 0 ? std::max(0, position - window + 1) : 0;
    double max = sink, total = 0;
    for (int p = first; p <= position; ++p) {
      if (std::isnan(k[p * d])) {  // in a hole
        logits.push_back(-INFINITY);
        continue;
      }
      double s = 0;
      for (int i = 0; i < d; ++i) s += shim::to_float(dtype, query[i]) * k[p * d + i];
      s *= scale;
      logits.push_back(soft_cap > 0 ? soft_cap * std::tanh(s / soft_cap) : s);
      max = std::max(max, logits.back());
    }
    total += std::exp(sink - max);
    for (int p = first; p <= position; ++p) {
      if (std::isnan(k[p * d])) continue;
      const double weight = std::exp(logits[p - first] - max);
      total += weight;
      for (int i = 0; i < d; ++i) {
        sum[i] += weight * v[p * d + i];
        magnitude[i] += weight * std::fabs(v[p * d + i]);
      }
    }
    bool good = std::fabs(max + std::log(total) - lse) < 2e-5;
    for (int i = 0; i < d; ++i) {
      const double bound = unit * (magnitude[i] + std::fabs(sum[i])) / total + 3e-5;
      good &= std::fabs(shim::to_float(dtype, out[i]) - sum[i] / total) < bound;
    }
    return good;
  }
};

struct Result {
  Halves out;
  std::vector<float> lse;

  bool operator==(const Result& other) const {
    return out == other.out && std::memcmp(lse.data(), other.lse.data(), lse.size() * sizeof(float)) == 0;
  }
};

constexpr int kPadding = 3;  // rows of out and lse after those of the plan
constexpr float kUnwritten = 77;

// Result of a call with `rows` rows of q. It may write no further rows of out and lse, and q's memory ends
// there.
Result attend(const Forest& forest, const WorkPlanner& planner, bool spare, int rows) {
  const WorkCounts n = planner.counts();
  const auto room = [&](int64_t count) { return (count + 15 + (spare ? 32 : 0)) / 16 * 16; };
  const WorkCapacity capacity = {room(n.items), room(n.queries), room(n.merges), room(n.pages),
                                 room(n.partials)};
  const Shape& s = forest.shape;
  std::vector<int32_t> work(WorkLayout(capacity).end, 0x7f7f7f7f);
  planner.write(work.data(), capacity, 0);
  std::vector<float> partials(s.heads * capacity.partials * (s.head_dim + 1), NAN);
  const int heads = s.heads * forest.group;
  const size_t out_rows = static_cast<size_t>(forest.num_queries + kPadding) * heads;
  Result result = {Halves(out_rows * s.head_dim, kNan), std::vector<float>(out_rows, kUnwritten)};
  const Halves q(forest.q.begin(), forest.q.begin() + std::min(rows, forest.num_queries) * forest.q_row);
  tree_attention({{forest.storage.k, forest.storage.v, s.pages, s.heads, s.page_size, s.head_dim, 2},
                  {q.data(), forest.q_row, s.head_dim},
                  rows,
                  heads,
                  forest.dtype,
                  {work.data(), partials.data(), capacity, spare ? capacity.items : n.items,
                   spare          ? capacity.queries
                   : n.merges > 0 ? n.queries
                                  : 0},
                  result.out.data(),
                  result.lse.data(),
                  forest.scale,
                  forest.window,
                  forest.soft_cap,
                  forest.sinks.empty() ? nullptr : forest.sinks.data()},
                 nullptr);

  const auto* items = reinterpret_cast<const WorkItem*>(work.data() + WorkLayout(capacity).items);
  for (int64_t i = 0; i < n.items; ++i) {
    ++(items[i].partial_base == kDirect ? covered.direct : covered.partial);
    ++(items[i].height == 16 ? covered.low : covered.high);
  }
  covered.merged += n.merges > 0;
  return result;
}

void check_attention(Forest& forest, const Result& result) {
  const int heads = forest.shape.heads * forest.group, d = forest.shape.head_dim;
  int64_t row = 0;  // of the branch's first query
  for (size_t b = 0; b < forest.tables.size(); row += forest.query_lens[b++]) {
    for (int head = 0; head < heads; ++head) {
      const std::vector<float> k = forest.gather(forest.storage.k, b, head / forest.group);
      const std::vector<float> v = forest.gather(forest.storage.v, b, head / forest.group);
      for (int i = 0; i < forest.query_lens[b]; ++i) {
        const int64_t at = (row + i) * heads + head;
        CHECK(forest.close(k, v, forest.lengths[b] - forest.query_lens[b] + i,
                           forest.sinks.empty() ? -INFINITY : forest.sinks[head],
                           &forest.q[(row + i) * forest.q_row + head * d], &result.out[at * d],
                           result.lse[at]));
      }
    }
  }
}

// `result` with other values in the rows from `row` on.
Result fill_rows(const Forest& forest, Result result, int row, uint16_t out, float lse) {
  const int64_t begin = int64_t{row} * forest.shape.heads * forest.group;
  std::fill(result.out.begin() + begin * forest.shape.head_dim, result.out.end(), out);
  std::fill(result.lse.begin() + begin, result.lse.end(), lse);
  return result;
}

void test_attention(uint32_t seed, DType dtype, int head_dim, Layout layout) {
  Random random(seed);
  Forest forest(random, dtype, head_dim, layout);
  const Shape& s = forest.shape;
  const int height = pick(random, {16, 64, 64}), sms = pick(random, {1, 8, 132});
  // With this many bytes, tokens cost enough that small trees are shared and split like large ones.
  const int kv_bytes = pick(random, {2, 200});
  WorkPlanner planner({s.heads, forest.group, head_dim, kv_bytes, height, sms}, s.page_size, s.pages, false);
  std::vector<int32_t> tables;
  planner.update(forest.branch_tables(tables), std::nullopt);
  const int queries = forest.num_queries, few = draw(random, 0, queries);
  const Result result = attend(forest, planner, false, queries + kPadding);
  check_attention(forest, result);
  CHECK(fill_rows(forest, result, queries, kNan, kUnwritten) == result);  // no launch covers the padding
  shim::reverse_order = true;
  CHECK(attend(forest, planner, true, queries + kPadding) ==
        fill_rows(forest, result, queries, 0, -INFINITY));
  CHECK(attend(forest, planner, true, few) == fill_rows(forest, result, few, kNan, kUnwritten));
  shim::reverse_order = false;
}

}  // namespace
}  // namespace tts::cuda

int main() {
  using namespace tts::cuda;
  Random random(1);
  const Layout layouts[] = {Layout::kHND, Layout::kNHD, Layout::kHalvesOfRow, Layout::kUnaligned};
  for (const Layout layout : layouts) {
    for (int i = 0; i < 3; ++i) {
      test_storage<uint16_t>(random, layout);
      test_storage<uint32_t>(random, layout);
    }
  }
  uint32_t seed = 0;
  for (const Layout layout : layouts) {
    for (const int head_dim : {64, 128}) {
      for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
        for (int i = 0; i < 2; ++i) test_attention(seed++, dtype, head_dim, layout);
      }
    }
  }
  std::printf(
      "items: %d direct, %d partial, %d of height 16, %d of 64; %d cases merged; %d holes; %d cases with "
      "sinks\n",
      covered.direct, covered.partial, covered.low, covered.high, covered.merged, covered.holes,
      covered.sinks);
  CHECK(std::min({covered.direct, covered.partial, covered.low, covered.high, covered.merged, covered.holes,
                  covered.sinks}) > 0);
  return tts::test::failures() == 0 ? 0 : 1;
}
