#include "cpu/linear.h"

#include <algorithm>
#include <variant>
#include <vector>

#include "common/error.h"
#include "cpu/packed_linear.h"
#include "cpu/quantised_linear.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/scratch.h"

namespace tts {
namespace {

constexpr int64_t kSmall = 1 << 15;  // elements whose conversion is not worth waking threads
constexpr int64_t kLine = 16;        // words

using Product = std::variant<PackedLinear, QuantisedLinear>;

// A product, and where its converted rows lie in memory that all parts share.
struct Part {
  Product product;
  int64_t rows_at;
  bool converts;  // false: the rows are those of an earlier part
};

Product make_product(const LinearTask& task, int num_threads) {
  if (const auto* panels = std::get_if<FloatPanels>(&task.weight.panels)) {
    return PackedLinear(task, *panels, num_threads);
  }
  return QuantisedLinear(task, std::get<QuantPanels>(task.weight.panels), num_threads);
}

bool share_rows(const Product& one, const Product& other) {
  const auto *a = std::get_if<QuantisedLinear>(&one), *b = std::get_if<QuantisedLinear>(&other);
  return a != nullptr && b != nullptr && a->shares_rows(*b);
}

// Calls body(part, product, i) for each i below count(part, product), of all parts in one parallel region.
template <class Count, class Body>
void for_each_unit(const std::vector<Part>& parts, int num_threads, const Count& count, const Body& body) {
  const auto units = [&](const Part& part) {
    return std::visit([&](const auto& product) { return count(part, product); }, part.product);
  };
  int64_t all = 0;
  for (const Part& part : parts) all += units(part);
  parallel_for(num_threads, all, [&](int64_t unit) {
    for (const Part& part : parts) {
      const int64_t own = units(part);
      if (unit < own) {
        return std::visit([&](const auto& product) { body(part, product, unit); }, part.product);
      }
      unit -= own;
    }
  });
}

}  // namespace

void multiply(const LinearRows& x, std::span<const Matrix> weights, const LinearOut& out, int num_threads) {
  std::vector<Part> parts;
  parts.reserve(weights.size());
  int64_t words = 0, column = 0;
  for (const Matrix& weight : weights) {
    require(!weight.gated || (weight.num_panels % 2 == 0 && !out.add), "weight: got ", weight.num_panels,
            " panels, expected an even number of a gated weight, and nothing to add to");
    const LinearEnd end = weight.gated ? LinearEnd::kSwiGLU : out.add ? LinearEnd::kAdd : LinearEnd::kStore;
    Product product = make_product({x, weight, out.data + column, out.stride, end}, num_threads);
    column += columns(weight);
    const auto same = std::find_if(parts.begin(), parts.end(),
                                   [&](const Part& part) { return share_rows(part.product, product); });
    const bool converts = same == parts.end();
    parts.push_back({product, converts ? words : same->rows_at, converts});
    const int64_t own = std::visit([](const auto& known) { return known.row_words(); }, product);
    if (converts) words += (own + kLine - 1) / kLine * kLine;
  }
  thread_local Scratch memory;
  uint32_t* const rows = memory.reserve(static_cast<size_t>(words));
  for_each_unit(
      parts, x.count * x.inputs < kSmall ? 1 : num_threads,
      [](const Part& part, const auto& product) { return part.converts ? product.bands() : 0; },
      [&](const Part& part, const auto& product, int64_t band) {
        product.convert(band, rows + part.rows_at);
      });
  for_each_unit(
      parts, num_threads, [](const Part&, const auto& product) { return product.units(); },
      [&](const Part& part, const auto& product, int64_t unit) {
        product.multiply(unit, rows + part.rows_at);
      });
}

}  // namespace tts
