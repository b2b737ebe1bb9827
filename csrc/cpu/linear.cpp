#include "cpu/linear.h"

#include <algorithm>
#include <cstddef>
#include <variant>
#include <vector>

#include "common/error.h"
#include "cpu/dequantised_linear.h"
#include "cpu/packed_linear.h"
#include "cpu/quantised_linear.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/scratch.h"

namespace tts {
namespace {

constexpr int64_t kSmall = 1 << 15;  // up to this many elements, conversion is not worth waking threads
constexpr int64_t kLine = 16;        // words

using Steps = std::variant<PackedLinear, QuantisedLinear, DequantisedLinear>;

// The steps of one weight, and the offset of its converted rows in the memory that all parts share.
struct Part {
  Steps steps;
  int64_t rows_at;
  bool converts;  // false: uses the rows of an earlier part
};

Steps make_steps(const LinearTask& task, int num_threads) {
  if (const auto* panels = std::get_if<FloatPanels>(&task.weight.panels)) {
    return PackedLinear(task, *panels, num_threads);
  }
  const auto& panels = std::get<QuantPanels>(task.weight.panels);
  if (panels.exact) return DequantisedLinear(task, panels);
  return QuantisedLinear(task, panels, num_threads);
}

bool share_rows(const Steps& one, const Steps& other) {
  const auto *a = std::get_if<QuantisedLinear>(&one), *b = std::get_if<QuantisedLinear>(&other);
  return a != nullptr && b != nullptr && a->shares_rows(*b);
}

// Appends a part for each weight of a product. `words`: words of converted rows so far.
void append_parts(const LinearProduct& product, int num_threads, std::vector<Part>& parts, int64_t& words) {
  const auto own = static_cast<std::ptrdiff_t>(parts.size());
  float* out = product.out.data;
  for (const Matrix& weight : product.weights) {
    require(!weight.gated || (weight.num_panels % 2 == 0 && !product.out.add), "weight: got ",
            weight.num_panels, " panels, expected an even number of a gated weight, and nothing to add to");
    const LinearEnd end = weight.gated      ? LinearEnd::kSwiGLU
                          : product.out.add ? LinearEnd::kAdd
                                            : LinearEnd::kStore;
    const Steps steps = make_steps({product.x, weight, out, product.out.stride, end}, num_threads);
    out += columns(weight);
    const auto same = std::find_if(parts.begin() + own, parts.end(),
                                   [&](const Part& part) { return share_rows(part.steps, steps); });
    const bool converts = same == parts.end();
    parts.push_back({steps, converts ? words : same->rows_at, converts});
    const int64_t rows = std::visit([](const auto& known) { return known.row_words(); }, steps);
    if (converts) words += (rows + kLine - 1) / kLine * kLine;
  }
}

// Calls body(part, steps, i) for each i below count(part, steps), for all parts in one parallel region.
template <class Count, class Body>
void for_each_unit(const std::vector<Part>& parts, int num_threads, const Count& count, const Body& body) {
  std::vector<int64_t> ends;
  int64_t all = 0;
  for (const Part& part : parts) {
    all += std::visit([&](const auto& steps) { return count(part, steps); }, part.steps);
    ends.push_back(all);
  }
  parallel_for(num_threads, all, [&](int64_t unit) {
    const auto i = static_cast<size_t>(std::upper_bound(ends.begin(), ends.end(), unit) - ends.begin());
    const int64_t own = i == 0 ? unit : unit - ends[i - 1];
    std::visit([&](const auto& steps) { body(parts[i], steps, own); }, parts[i].steps);
  });
}

}  // namespace

void multiply(std::span<const LinearProduct> products, int num_threads) {
  std::vector<Part> parts;
  int64_t words = 0, elements = 0;
  for (const LinearProduct& product : products) {
    append_parts(product, num_threads, parts, words);
    elements += product.x.count * product.x.inputs;
  }
  thread_local Scratch memory;
  uint32_t* const rows = memory.reserve(static_cast<size_t>(words));
  for_each_unit(
      parts, elements < kSmall ? 1 : num_threads,
      [](const Part& part, const auto& steps) { return part.converts ? steps.bands() : int64_t{0}; },
      [&](const Part& part, const auto& steps, int64_t band) { steps.convert(band, rows + part.rows_at); });
  for_each_unit(
      parts, num_threads, [](const Part&, const auto& steps) { return steps.units(); },
      [&](const Part& part, const auto& steps, int64_t unit) { steps.multiply(unit, rows + part.rows_at); });
}

void multiply(const LinearRows& x, std::span<const Matrix> weights, const LinearOut& out, int num_threads) {
  const LinearProduct product{x, weights, out};
  multiply({&product, 1}, num_threads);
}

}  // namespace tts
