#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>

#include "bindings/arguments.h"
#include "bindings/bindings.h"
#include "tree/work_plan.h"

namespace py = pybind11;

namespace tts {
namespace {

using Array = py::array_t<int32_t, py::array::c_style>;
using Counts = std::array<int64_t, 5>;  // items, queries, merges, pages, partials

WorkCapacity to_capacity(const Counts& c) { return {c[0], c[1], c[2], c[3], c[4]}; }

bool update(WorkPlanner& planner, const Array& block_tables, const Array& lengths,
            const std::optional<Array>& query_lens, int64_t page_size,
            const std::optional<Counts>& capacity) {
  return planner.update(branch_tables(block_tables, lengths, query_lens, page_size),
                        capacity ? std::optional(to_capacity(*capacity)) : std::nullopt);
}

Counts counts(const WorkPlanner& planner) {
  const WorkCounts n = planner.counts();
  return {n.items, n.queries, n.merges, n.pages, n.partials};
}

int64_t write(const WorkPlanner& planner, uintptr_t buffer, int64_t size, const Counts& counts,
              int64_t stamp) {
  const WorkCapacity capacity = to_capacity(counts);
  const WorkCounts n = planner.counts();
  require(n.items <= capacity.items && n.queries <= capacity.queries && n.merges <= capacity.merges &&
              n.pages <= capacity.pages && WorkLayout(capacity).end <= size,
          "capacity: the plan does not fit it, or it does not fit the buffer of ", size, " ints");
  return planner.write(reinterpret_cast<int32_t*>(buffer), capacity, stamp);
}

}  // namespace

void bind_work_plan(py::module_& m) {
  m.attr("TAIL_TOKENS") = kTailTokens;
  py::class_<WorkPlanner>(m, "WorkPlanner", py::module_local(),
                          "Builds work lists for a GPU; tts_kernels.DevicePlanner owns one.")
      .def(py::init([](int32_t num_kv_heads, int32_t group, int32_t head_dim, int32_t kv_bytes,
                       int32_t max_height, int32_t num_sms, int64_t page_size, int64_t num_pages,
                       bool branch_invariant) {
             return WorkPlanner({num_kv_heads, group, head_dim, kv_bytes, max_height, num_sms}, page_size,
                                num_pages, branch_invariant);
           }),
           py::arg("num_kv_heads"), py::arg("group"), py::arg("head_dim"), py::arg("kv_bytes"),
           py::arg("max_height"), py::arg("num_sms"), py::arg("page_size"), py::arg("num_pages"),
           py::arg("branch_invariant"))
      .def(
          "update", &update, py::arg("block_tables").noconvert(), py::arg("lengths").noconvert(),
          py::arg("query_lens").noconvert(), py::arg("page_size"), py::arg("capacity"),
          "Makes a plan; True if the previous plan was only advanced. query_lens None: one query per branch.")
      .def("counts", &counts, "Numbers of items, queries, merges, pages and partials in the plan.")
      .def_property_readonly("max_columns", &WorkPlanner::max_columns,
                             "Largest number of pages that a query sees.")
      .def_property_readonly("stamp", &WorkPlanner::stamp,
                             "Version of the current plan; a buffer written now holds it.")
      .def("write", &write, py::arg("buffer"), py::arg("size"), py::arg("capacity"), py::arg("stamp"),
           "Writes the plan to `size` ints at address `buffer`, last written at `stamp` (0: never). Returns "
           "how many of these ints hold it.");
}

}  // namespace tts
