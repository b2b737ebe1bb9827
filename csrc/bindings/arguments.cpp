#include "bindings/arguments.h"

namespace py = pybind11;

namespace tts {
namespace {

std::string describe(py::handle value) {
  return concat(py::repr(value).cast<std::string>(), " (", Py_TYPE(value.ptr())->tp_name, ")");
}

}  // namespace

py::tuple to_items(py::handle values, ArgumentName name, const char* expected) {
  auto items = py::reinterpret_steal<py::object>(PySequence_Tuple(values.ptr()));
  if (items) return items;
  if (!PyErr_ExceptionMatches(PyExc_TypeError)) throw py::error_already_set();
  PyErr_Clear();
  throw py::type_error(concat(name.str(), ": got ", describe(values), ", expected ", expected));
}

template <class T>
T to_integer(py::handle value, ArgumentName name, T low) {
  if (PyBool_Check(value.ptr()) || !PyIndex_Check(value.ptr())) {
    throw py::type_error(concat(name.str(), ": got ", describe(value), ", expected an int"));
  }
  py::object integer = py::reinterpret_borrow<py::object>(value);
  if (!PyLong_CheckExact(value.ptr())) {
    integer = py::reinterpret_steal<py::object>(PyNumber_Index(value.ptr()));
    if (!integer) {
      if (!PyErr_ExceptionMatches(PyExc_TypeError)) throw py::error_already_set();
      PyErr_Clear();  // for example, an array of several numbers
      throw py::type_error(concat(name.str(), ": got ", describe(value), ", expected an int"));
    }
  }
  int overflow = 0;
  const long long result = PyLong_AsLongLongAndOverflow(integer.ptr(), &overflow);
  constexpr T kHigh = std::numeric_limits<T>::max();
  if (overflow != 0 || result < low || result > kHigh) {
    throw ArgumentError(concat(name.str(), ": got ", describe(value), ", expected ", low, " to ", kHigh));
  }
  return static_cast<T>(result);
}

template <class T>
void append_integers(py::handle values, ArgumentName name, T low, std::vector<T>& out) {
  if (py::isinstance<py::array>(values)) {
    const auto array = py::reinterpret_borrow<py::array>(values);
    const char kind = array.dtype().kind();
    if (array.ndim() != 1 || (kind != 'i' && kind != 'u')) {
      throw py::type_error(concat(name.str(), ": got an array of ", array.ndim(), " dimensions and dtype ",
                                  py::str(array.dtype()).cast<std::string>(),
                                  ", expected one dimension of integers"));
    }
    const auto integers = py::array_t<int64_t, py::array::c_style | py::array::forcecast>(array);
    for (py::ssize_t i = 0; i < integers.size(); ++i) {
      const int64_t value = integers.data()[i];
      if (value < low || value > std::numeric_limits<T>::max()) {
        throw ArgumentError(concat(name.str(), ": got ", value, " at index ", i, ", expected ", low, " to ",
                                   std::numeric_limits<T>::max()));
      }
      out.push_back(static_cast<T>(value));
    }
    return;
  }
  const py::tuple items = to_items(values, name, "a sequence of ints");
  for (size_t i = 0; i < items.size(); ++i) {
    const py::ssize_t index = static_cast<py::ssize_t>(i);
    out.push_back(to_integer<T>(PyTuple_GET_ITEM(items.ptr(), index), {name.name, index}, low));
  }
}

template int32_t to_integer<int32_t>(py::handle, ArgumentName, int32_t);
template int64_t to_integer<int64_t>(py::handle, ArgumentName, int64_t);
template void append_integers<int32_t>(py::handle, ArgumentName, int32_t, std::vector<int32_t>&);
template void append_integers<int64_t>(py::handle, ArgumentName, int64_t, std::vector<int64_t>&);

BranchTables branch_tables(const Int32Array& block_tables, const Int32Array& lengths,
                           const std::optional<Int32Array>& query_lens, int64_t page_size) {
  require(block_tables.ndim() == 2, "block_tables: got ", block_tables.ndim(), " dimensions, expected 2");
  const auto check_per_branch = [&](const Int32Array& array, const char* name) {
    require(array.ndim() == 1 && array.shape(0) == block_tables.shape(0), name, ": got ",
            py::str(array.attr("shape")).cast<std::string>(), ", expected (", block_tables.shape(0),
            ",), one entry a row of block_tables");
  };
  check_per_branch(lengths, "lengths");
  if (query_lens) check_per_branch(*query_lens, "query_lens");
  return {block_tables.data(),   lengths.data(),        query_lens ? query_lens->data() : nullptr,
          block_tables.shape(0), block_tables.shape(1), page_size};
}

QuantForm quant_form(const std::vector<int>& numbers) {
  require(numbers.size() == 5 || numbers.size() == 21, "form: got ", numbers.size(),
          " numbers, expected 5, or 21 with a table");
  require(numbers[2] >= 0 && numbers[2] <= static_cast<int>(QuantScales::kFloat32), "form: got scales ",
          numbers[2], ", expected 0 to 3");
  require(numbers[3] >= 0 && numbers[3] <= 7, "form: got minima ", numbers[3], ", expected 0 to 7");
  const bool has_min = (numbers[3] & 1) != 0, has_zeros = (numbers[3] & 2) != 0;
  QuantForm form{
      numbers[0],           numbers[1], static_cast<QuantScales>(numbers[2]), has_min, has_zeros, numbers[4],
      numbers.size() == 21, {}};
  for (size_t i = 5; i < numbers.size(); ++i) {
    require(numbers[i] >= 0 && numbers[i] <= 255, "form: got ", numbers[i], " in a table, expected 0 to 255");
    form.table[i - 5] = static_cast<uint8_t>(numbers[i]);
  }
  return form;
}

QuantPanels quant_panels(uintptr_t data, const std::vector<int>& form, int64_t blocks, uintptr_t order) {
  const QuantForm known = quant_form(form);
  return {pointer<uint8_t>(data), known, blocks, (form[3] & 4) != 0, pointer<int32_t>(order)};
}

}  // namespace tts
