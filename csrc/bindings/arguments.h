// Arguments as Python passes them. They are checked inside the bound function, so that an error can name
// them.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "common/error.h"
#include "cpu/matrix.h"
#include "tree/branch_order.h"

namespace tts {

// Shown in a message as "name" or "name[index]".
struct ArgumentName {
  const char* name;
  pybind11::ssize_t index = -1;

  std::string str() const { return index < 0 ? std::string(name) : concat(name, "[", index, "]"); }
};

// Converts an address that torch reports.
template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// Accepts anything with __index__ except bool. Throws TypeError for other types, ValueError for a value
// outside T or below `low`.
template <class T>
T to_integer(pybind11::handle value, ArgumentName name, T low = std::numeric_limits<T>::min());

// Appends the integers of a sequence or of a one-dimensional array to `out`.
template <class T>
void append_integers(pybind11::handle values, ArgumentName name, T low, std::vector<T>& out);

// The items of any iterable except an array, copied so that no item can vanish while it is read.
pybind11::tuple to_items(pybind11::handle values, ArgumentName name, const char* expected);

using Int32Array = pybind11::array_t<int32_t, pybind11::array::c_style>;

// A planner's tables with checked shapes: [B, P], [B], and [B] or none for one query per branch.
BranchTables branch_tables(const Int32Array& block_tables, const Int32Array& lengths,
                           const std::optional<Int32Array>& query_lens, int64_t page_size);

// Parses a form of quantised weights: bits, group, scales, flags (1: has_min, 2: has_zeros, 4: exact
// products), offset, then the 16 table entries if there is a table.
QuantForm quant_form(const std::vector<int>& numbers);

// Panels of this form at address `data`; order: address of the order of their inputs, 0 for none.
QuantPanels quant_panels(uintptr_t data, const std::vector<int>& form, int64_t blocks, uintptr_t order);

// Parameters that accept any object; the signature shows the expected type.
struct Int {
  static constexpr auto kShown = pybind11::detail::const_name("int");
  pybind11::object value;

  int64_t get(const char* name) const { return to_integer<int64_t>(value, {name}); }
};
struct Ints {
  static constexpr auto kShown = pybind11::detail::const_name("Sequence[int]");
  pybind11::object value;
};
struct IntLists {
  static constexpr auto kShown = pybind11::detail::const_name("Sequence[Sequence[int]]");
  pybind11::object value;
};

}  // namespace tts

namespace pybind11::detail {

template <class Parameter>
struct any_caster {
  PYBIND11_TYPE_CASTER(Parameter, Parameter::kShown);
  bool load(handle source, bool) {
    value.value = reinterpret_borrow<object>(source);
    return true;
  }
};
template <>
struct type_caster<tts::Int> : any_caster<tts::Int> {};
template <>
struct type_caster<tts::Ints> : any_caster<tts::Ints> {};
template <>
struct type_caster<tts::IntLists> : any_caster<tts::IntLists> {};

}  // namespace pybind11::detail
