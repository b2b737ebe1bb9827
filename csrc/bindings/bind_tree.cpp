#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <array>
#include <cstring>
#include <optional>
#include <span>

#include "bindings/arguments.h"
#include "bindings/bindings.h"
#include "tree/kv_tree.h"
#include "tree/plan_buffer.h"

namespace py = pybind11;

namespace tts {

// The tree behind a method's `self`. KVTree.__new__ without __init__ makes an object without a tree, and
// pybind11 would read uninitialised memory as one.
struct Self {
  KVTree* tree = nullptr;

  KVTree* operator->() const { return tree; }
};

}  // namespace tts

namespace pybind11::detail {

template <>
struct type_caster<tts::Self> {
  PYBIND11_TYPE_CASTER(tts::Self, const_name("KVTree"));
  bool load(handle source, bool) {
    if (!isinstance<tts::KVTree>(source)) return false;
    if (!reinterpret_cast<instance*>(source.ptr())->get_value_and_holder().holder_constructed()) {
      throw type_error(
          "KVTree: got an object that __init__ was not called for; make it with KVTree(num_pages)");
    }
    value.tree = source.cast<tts::KVTree*>();
    return true;
  }
};

}  // namespace pybind11::detail

namespace tts {
namespace {

using Array = py::array_t<int32_t, py::array::c_style>;

// A new int32 array [count, kFields], or [count] if Record is int32_t.
template <class Record>
Array to_array(const std::vector<Record>& records) {
  constexpr size_t kFields = sizeof(Record) / sizeof(int32_t);
  std::vector<py::ssize_t> shape{static_cast<py::ssize_t>(records.size())};
  if (kFields > 1) shape.push_back(kFields);
  Array array(shape);
  if (!records.empty()) std::memcpy(array.mutable_data(), records.data(), records.size() * sizeof(Record));
  return array;
}

// tts::Append with numpy arrays.
struct PyAppend {
  Array slots;
  Array copies;
};

// Replaces __new__: only C++ makes these objects.
PyObject* refuse_new(PyTypeObject* type, PyObject*, PyObject*) {
  PyErr_Format(PyExc_TypeError, "%s: cannot be made, expected one that a KVTree returns", type->tp_name);
  return nullptr;
}

py::custom_type_setup without_new() {
  return py::custom_type_setup([](PyHeapTypeObject* type) { type->ht_type.tp_new = refuse_new; });
}

std::optional<int64_t> optional_integer(const std::optional<Int>& value, const char* name) {
  return value ? std::optional(value->get(name)) : std::nullopt;
}

std::vector<int64_t> to_ids(const Ints& branches) {
  std::vector<int64_t> ids;
  append_integers<int64_t>(branches.value, {"branches"}, std::numeric_limits<int64_t>::min(), ids);
  return ids;
}

PyAppend append(const Self& tree, const Ints& branches, const IntLists& tokens) {
  const py::tuple lists = to_items(tokens.value, {"tokens"}, "one sequence of token ids a branch");
  std::vector<int32_t> flat;
  std::vector<size_t> ends;
  for (size_t i = 0; i < lists.size(); ++i) {
    append_integers<int32_t>(lists[i], {"tokens", static_cast<py::ssize_t>(i)}, 0, flat);
    ends.push_back(flat.size());
  }
  std::vector<std::span<const int32_t>> spans;
  for (size_t i = 0, begin = 0; i < ends.size(); begin = ends[i++]) {
    spans.emplace_back(flat.data() + begin, ends[i] - begin);
  }
  const Append done = tree->append(to_ids(branches), spans);
  return {to_array(done.slots), to_array(done.copies)};
}

int64_t evict(const Self& tree, const Ints& branches, const Ints& columns) {
  std::vector<int64_t> found;
  append_integers<int64_t>(columns.value, {"columns"}, std::numeric_limits<int64_t>::min(), found);
  return tree->evict(to_ids(branches), found);
}

void compact(const Self& tree, const Int& branch, const Ints& columns, const Int& keep) {
  std::vector<int64_t> found;
  append_integers<int64_t>(columns.value, {"columns"}, std::numeric_limits<int64_t>::min(), found);
  tree->compact(branch.get("branch"), found, keep.get("keep"));
}

Array offload(const Self& tree, const Ints& pages) {
  std::vector<int64_t> found;
  append_integers<int64_t>(pages.value, {"pages"}, std::numeric_limits<int64_t>::min(), found);
  return to_array(tree->offload(found));
}

Array reload(const Self& tree, const Ints& branches) { return to_array(tree->reload(to_ids(branches))); }

py::tuple block_tables(const Self& tree, const Ints& branches) {
  const std::vector<int64_t> ids = to_ids(branches);
  size_t width = 0;
  for (const int64_t id : ids) width = std::max(width, tree->pages(id).size());
  Array tables(
      std::vector<py::ssize_t>{static_cast<py::ssize_t>(ids.size()), static_cast<py::ssize_t>(width)});
  Array lengths(static_cast<py::ssize_t>(ids.size()));
  int32_t* row = tables.mutable_data();
  for (size_t i = 0; i < ids.size(); ++i, row += width) {
    const auto pages = tree->pages(ids[i]);
    std::fill(std::copy(pages.begin(), pages.end(), row), row + width, -1);
    lengths.mutable_data()[i] = tree->length(ids[i]);
  }
  return py::make_tuple(std::move(tables), std::move(lengths));
}

std::optional<std::pair<int64_t, int32_t>> match(const Self& tree, const Ints& tokens) {
  std::vector<int32_t> ids;
  append_integers<int32_t>(tokens.value, {"tokens"}, 0, ids);
  const auto found = tree->match(ids);
  if (!found) return std::nullopt;
  return std::pair(found->holder, found->length);
}

py::tuple plan_buffer(const Array& block_tables, const Array& lengths, const std::optional<Array>& query_lens,
                      const Int& page_size, const Int& query_block) {
  const int64_t tokens = page_size.get("page_size");
  const TreePlan plan =
      tts::plan({branch_tables(block_tables, lengths, query_lens, tokens), query_block.get("query_block")});
  const int64_t ints = plan_ints(plan);
  require(ints <= std::numeric_limits<int32_t>::max(), "query_block: the plan has ", ints,
          " numbers; use larger blocks or plan fewer queries at once");
  Array buffer(static_cast<py::ssize_t>(ints));
  write_plan(plan, static_cast<int32_t>(tokens), buffer.mutable_data());
  return py::make_tuple(std::move(buffer), plan.query_order.size(), plan.max_columns, plan.unique_pages,
                        plan.logical_pages);
}

std::string describe(const TreeStats& stats) {
  return concat("TreeStats(branches=", stats.branches, ", pins=", stats.pins,
                ", logical_tokens=", stats.logical_tokens, ", evicted_tokens=", stats.evicted_tokens,
                ", unique_tokens=", stats.unique_tokens, ", resident_pages=", stats.resident_pages,
                ", peak_pages=", stats.peak_pages, ", fragmentation=", stats.fragmentation, ")");
}

void bind_kv_tree(py::module_& m) {
  py::class_<PyAppend>(m, "Append", py::module_local(), without_new(),
                       "Work that KVTree.append leaves to its caller: first the copies, then the writes.")
      .def_readonly("slots", &PyAppend::slots,
                    "int32 [T]: slot of each new token, page * page_size + offset, in argument order.")
      .def_readonly(
          "copies", &PyAppend::copies,
          "int32 [C, 2]: (source page, target page) for each partly filled last page copied on write.");

  py::class_<TreeStats>(m, "TreeStats", py::module_local(), without_new(), "Snapshot of a KVTree's counters.")
      .def_readonly("branches", &TreeStats::branches)
      .def_readonly("pins", &TreeStats::pins)
      .def_readonly("logical_tokens", &TreeStats::logical_tokens, "Sum of the branch lengths.")
      .def_readonly("evicted_tokens", &TreeStats::evicted_tokens,
                    "Tokens counted in logical_tokens whose page was evicted; no branch sees them.")
      .def_readonly("unique_tokens", &TreeStats::unique_tokens,
                    "Distinct slots visible to a branch or a pin.")
      .def_readonly("resident_pages", &TreeStats::resident_pages,
                    "Pages of the pool held by a branch or a pin.")
      .def_readonly("offloaded_pages", &TreeStats::offloaded_pages, "Held pages that are offloaded.")
      .def_readonly("peak_pages", &TreeStats::peak_pages, "Highest number of pages resident at once so far.")
      .def_readonly("fragmentation", &TreeStats::fragmentation,
                    "Fraction of the slots in resident and offloaded pages that no branch or pin sees.")
      .def("__repr__", &describe);

  py::class_<KVTree>(m, "KVTree", py::module_local(),
                     R"(Branches over shared, reference-counted pages of a fixed-size pool.

Stores ids only; the caller stores K and V. Position p of a branch is slot p % page_size of page
block_table[p // page_size]; that entry is -1 where the page was evicted. Branches forked from one another
share all full pages. A partly filled last page is copied when a branch appends to it while another branch
or pin holds it.

Branch ids are unique within the process: an id that was released or belongs to another tree raises
ValueError. A call that raises leaves the tree unchanged. Not thread-safe.)")
      .def(py::init([](const Int& num_pages, const Int& page_size, const Int& offload_pages) {
             return KVTree(num_pages.get("num_pages"), page_size.get("page_size"),
                           offload_pages.get("offload_pages"));
           }),
           py::arg("num_pages"), py::arg("page_size") = 16, py::arg("offload_pages") = 0)
      .def_property_readonly("num_pages", [](const Self& tree) { return tree->pool().num_pages(); })
      .def_property_readonly("page_size", [](const Self& tree) { return tree->pool().page_size(); })
      .def_property_readonly("free_pages", [](const Self& tree) { return tree->pool().free_pages(); })
      .def_property_readonly("offload_pages", [](const Self& tree) { return tree->offloaded().num_pages(); })
      .def_property_readonly("offloaded_pages",
                             [](const Self& tree) { return tree->offloaded().resident_pages(); })
      .def(
          "create", [](const Self& tree) { return tree->create(); },
          "Creates an empty branch and returns its id.")
      .def(
          "fork",
          [](const Self& tree, const Int& branch, const Int& n, const std::optional<Int>& at) {
            return tree->fork(branch.get("branch"), n.get("n"), optional_integer(at, "at"));
          },
          py::arg("branch"), py::arg("n") = 1, py::arg("at") = py::none(),
          R"(Creates n branches that hold the first `at` tokens (default: all) of a branch or pin.

Forking takes no pages. A length given to fork(), pin() or truncate() must not end in an evicted or compacted
page.)")
      .def("append", &append, py::arg("branches"), py::arg("tokens"),
           R"(Appends tokens[i] to branches[i], for all i or none.

The caller does the returned copies before it writes the new tokens' K and V to the slots. Among branches
that share a partly filled last page, the last one to append writes in place; the others get copies.

Raises OutOfPagesError, before anything changes, if too few pages are free.)")
      .def(
          "truncate",
          [](const Self& tree, const Int& branch, const Int& length) {
            tree->truncate(branch.get("branch"), length.get("length"));
          },
          py::arg("branch"), py::arg("length"), "Drops all tokens from position `length` onward.")
      .def(
          "release", [](const Self& tree, const Int& branch) { tree->release(branch.get("branch")); },
          py::arg("branch"), "Ends a branch. Pages without another holder are freed at once.")
      .def("evict", &evict, py::arg("branches"), py::arg("columns"),
           R"(Drops the pages in block-table columns `columns` from each branch, for all branches or none.

The entries become -1, also in later forks of the branches. Positions do not change. Returns the number of
pages freed: those that no other branch holds.

Raises ValueError for a column that a branch does not have, its last column, a column already evicted from
it, and a page that a pin holds.)")
      .def("compact", &compact, py::arg("branch"), py::arg("columns"), py::arg("keep"),
           R"(Keeps the pages of the last `keep` of these columns of a branch and drops the others.

Before the call, the caller has moved the K and V to keep, from all these columns, into the pages that stay;
each layer may keep different tokens. Positions do not change. A compacted page matches no prompt; no fork,
pin or truncation may end in one; later forks of the branch share it.

Raises ValueError unless the columns ascend, lie before the last one and hold pages without another holder,
and 1 <= keep < len(columns).)")
      .def(
          "length", [](const Self& tree, const Int& branch) { return tree->length(branch.get("branch")); },
          py::arg("branch"), "Number of tokens in a branch or pin.")
      .def(
          "tokens",
          [](const Self& tree, const Int& branch) { return to_array(tree->tokens(branch.get("branch"))); },
          py::arg("branch"),
          "int32 [length]: token ids of a branch or pin; -1 where the page was evicted or compacted.")
      .def(
          "page_holders",
          [](const Self& tree, const Int& branch) {
            return to_array(tree->page_holders(branch.get("branch")));
          },
          py::arg("branch"),
          "int32 [pages]: number of branches and pins that hold each page of a branch or pin; 0 where the "
          "page was evicted.")
      .def(
          "pin",
          [](const Self& tree, const Int& branch, const std::optional<Int>& at) {
            return tree->pin(branch.get("branch"), optional_integer(at, "at"));
          },
          py::arg("branch"), py::arg("at") = py::none(),
          R"(Keeps the first `at` tokens (default: all) of a branch resident, whatever happens to the branch.

A pin can be read and forked like a branch, but not appended to, truncated or released. It does not count as
a branch.)")
      .def(
          "unpin", [](const Self& tree, const Int& pin) { tree->unpin(pin.get("pin")); }, py::arg("pin"),
          "Ends a pin. Pages without another holder are freed at once.")
      .def("offload", &offload, py::arg("pages"),
           R"(Moves resident pages out of the pool, for all their holders, and frees their places in it.

Returns int32 [M, 2]: (page, offload id); offload ids start at num_pages. The caller copies K and V there
before it appends or reloads anything. An offloaded page can be shared, matched, truncated and released like
any other, but a branch that ends in one cannot be appended to. A branch must be reloaded before a forward.

Raises OutOfPagesError if fewer than M of the offload_pages places are free, ValueError for a page that is
not resident.)")
      .def("reload", &reload, py::arg("branches"),
           R"(Moves the offloaded pages of branches or pins back into the pool, for all their holders.

Returns int32 [M, 2]: (offload id, page), which the caller copies as after offload(). Raises
OutOfPagesError, before anything changes, if too few pages are free.)")
      .def("match", &match, py::arg("tokens"), R"(Finds the longest resident prefix of `tokens`.

Returns (branch or pin, length), for fork(id, at=length): the oldest of equally long ones, or None if none
begins with the first token. An evicted page ends its branch's prefix.)")
      .def("block_tables", &block_tables, py::arg("branches"),
           "(int32 [B, max_pages], int32 [B]): pages and length of each branch or pin. A page is -1 if "
           "evicted or past the last one, num_pages or more if offloaded.")
      .def(
          "pages_needed",
          [](const Self& tree, const Int& branch, const Int& n) {
            return tree->pages_needed(branch.get("branch"), n.get("n"));
          },
          py::arg("branch"), py::arg("n"),
          "Upper bound on the pages that appending n tokens to this branch takes.")
      .def(
          "stats", [](const Self& tree) { return tree->stats(); },
          "Counts over all branches and pins, computed on each call.");
}

}  // namespace

void bind_tree(py::module_& m) {
  bind_kv_tree(m);
  m.attr("TILE_PAGES") = kTilePages;
  m.def("plan", &plan_buffer, py::arg("block_tables").noconvert(), py::arg("lengths").noconvert(),
        py::arg("query_lens").noconvert(), py::arg("page_size"), py::arg("query_block"),
        "tts_kernels.plan on int32 arrays. Returns the plan's buffer, num_queries, max_columns, unique_pages "
        "and logical_pages. query_lens None: one query per branch.");
}

}  // namespace tts
