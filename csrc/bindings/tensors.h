// Reads tensors through their Python attributes and methods, as csrc does not depend on torch.
#pragma once

#include <pybind11/gil_safe_call_once.h>
#include <pybind11/pybind11.h>

#include <cstdint>

#include "cpu/kv_layout.h"

namespace tts {

// Names of attributes and methods, created once.
struct TensorNames {
  pybind11::str dtype{"dtype"}, shape{"shape"}, stride{"stride"}, device{"device"}, is_cpu{"is_cpu"},
      layout{"layout"}, is_quantized{"is_quantized"}, is_nested{"is_nested"}, requires_grad{"requires_grad"},
      is_conj{"is_conj"}, is_neg{"is_neg"}, is_zerotensor{"_is_zerotensor"}, data_ptr{"data_ptr"},
      storage_offset{"storage_offset"}, untyped_storage{"untyped_storage"}, nbytes{"nbytes"};
};

inline const TensorNames& tensor_names() {
  static const auto* const names = new TensorNames;  // never destroyed: Python may be gone by then
  return *names;
}

inline pybind11::object attribute(PyObject* owner, const pybind11::str& name) {
  auto value = pybind11::reinterpret_steal<pybind11::object>(PyObject_GetAttr(owner, name.ptr()));
  if (!value) throw pybind11::error_already_set();
  return value;
}

inline pybind11::object call(PyObject* owner, const pybind11::str& name) {
  auto value = pybind11::reinterpret_steal<pybind11::object>(PyObject_CallMethodNoArgs(owner, name.ptr()));
  if (!value) throw pybind11::error_already_set();
  return value;
}

inline int64_t integer(const pybind11::object& value) {
  const int64_t result = PyLong_AsLongLong(value.ptr());
  if (result == -1 && PyErr_Occurred()) throw pybind11::error_already_set();
  return result;
}

inline uintptr_t address_of(const pybind11::object& tensor) {
  return static_cast<uintptr_t>(integer(call(tensor.ptr(), tensor_names().data_ptr)));
}

// The dtype of a tensor that passed the checks.
inline DType dtype_of(const pybind11::object& tensor) {
  struct Known {
    pybind11::object float32, bfloat16, int8;
  };
  PYBIND11_CONSTINIT static pybind11::gil_safe_call_once_and_store<Known> storage;
  const Known& known = storage
                           .call_once_and_store_result([] {
                             const auto torch = pybind11::module_::import("torch");
                             return Known{torch.attr("float32"), torch.attr("bfloat16"), torch.attr("int8")};
                           })
                           .get_stored();
  const pybind11::object dtype = attribute(tensor.ptr(), tensor_names().dtype);
  if (dtype.is(known.float32)) return DType::kFloat32;
  if (dtype.is(known.bfloat16)) return DType::kBFloat16;
  if (dtype.is(known.int8)) return DType::kInt8;
  throw pybind11::type_error("a tensor of float32, bfloat16 or int8 was expected");
}

// Sizes or strides of a tensor.
class Extents {
 public:
  static Extents sizes(const pybind11::object& tensor) {
    return Extents(attribute(tensor.ptr(), tensor_names().shape));
  }
  static Extents strides(const pybind11::object& tensor) {
    return Extents(call(tensor.ptr(), tensor_names().stride));
  }
  int64_t operator[](size_t dimension) const {
    if (dimension >= items_.size()) throw pybind11::index_error("a tensor of fewer dimensions was expected");
    return integer(items_[dimension]);
  }

 private:
  explicit Extents(const pybind11::object& items) : items_(items) {}
  pybind11::tuple items_;
};

}  // namespace tts
