// Fast path of tts_kernels.checks. Python checks the first call with arguments of a given form; this file
// checks later calls: that the form is the same, and that the memory exists and does not overlap. The form
// holds all that a description can depend on: class, dtype, device, shape and strides of a tensor, numbers,
// None. Tensors are read through their attributes, as csrc does not depend on torch.
#include <pybind11/stl.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <memory>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/tensors.h"
#include "common/error.h"

namespace py = pybind11;

namespace tts {
namespace {

constexpr size_t kMostForms = 4096;

using Form = std::vector<int64_t>;

struct FormHash {
  size_t operator()(const Form& form) const {
    uint64_t hash = form.size();
    for (const int64_t part : form) hash = (hash ^ static_cast<uint64_t>(part)) * 0x9E3779B97F4A7C15u;
    return static_cast<size_t>(hash ^ (hash >> 32));
  }
};

// A tensor of a known form: its index among the arguments, the bytes its elements span, and the bytes of one
// element.
struct Span {
  int64_t index, reach, item;
};

// A written tensor and one that must not share memory with it, as indices of spans. Their byte ranges may
// overlap without sharing an element, as with interleaved pages; `apart` lists the distances between them at
// which they are known to share none.
struct Write {
  size_t written, other;
  std::vector<int64_t> apart;
};

constexpr size_t kMostDistances = 16;

struct Seen {
  py::object footprint;
  std::vector<Span> spans;
  std::vector<Write> writes;
};

class Forms {
 public:
  // torch: the module. direct: arguments come from Python, not through torch's dispatcher, which passes only
  // dense tensors to a kernel and handles gradients by autograd's keys.
  Forms(const py::module_& torch, bool direct)
      : direct_(direct),
        tensor_(torch.attr("Tensor")),
        parameter_(torch.attr("nn").attr("Parameter")),
        dtype_(torch.attr("dtype")),
        strided_(torch.attr("strided")),
        is_grad_enabled_(torch.attr("is_grad_enabled")),
        forward_ad_(torch.attr("autograd").attr("forward_ad")),
        is_wrapped_(torch.attr("_C").attr("_functorch").attr("is_functorch_wrapped_tensor")) {}

  // The footprint learnt for the form of `args`, if their memory needs no further check; else None.
  py::object look(const py::tuple& args) {
    const auto seen = find_seen(args);
    return seen && lies_well(args, *seen) ? seen->footprint : py::none();
  }

  // The footprint learnt for the form of `args`; else None.
  py::object find(const py::tuple& args) {
    const auto seen = find_seen(args);
    return seen ? seen->footprint : py::none();
  }

  // Whether a tensor may require a derivative; if so, Python must check.
  bool wants_derivative(const py::tuple& args) const {
    if (integer(py::object(forward_ad_.attr("_current_level"))) >= 0) return true;
    if (is_grad_enabled_().ptr() != Py_True) return false;
    return std::any_of(args.begin(), args.end(), [&](py::handle arg) {
      return PyObject_TypeCheck(arg.ptr(), type_of(tensor_)) &&
             attribute(arg.ptr(), names_.requires_grad).ptr() != Py_False;
    });
  }

  // footprint: has `spans` and `writes`. Arguments without a form are not recorded.
  void learn(const py::tuple& args, py::object footprint) {
    std::optional<Form> form = form_of(args);
    if (!form) return;
    Seen seen{footprint, {}, {}};
    for (const py::handle item : py::tuple(footprint.attr("spans"))) {
      const auto [index, reach, bytes] = item.cast<std::tuple<int64_t, int64_t, int64_t>>();
      require(index >= 0 && index < static_cast<int64_t>(args.size()), "spans: got index ", index);
      seen.spans.push_back({index, reach, bytes});
    }
    for (const py::handle pair : py::tuple(footprint.attr("writes"))) {
      const auto [written, other] = pair.cast<std::pair<int64_t, int64_t>>();
      seen.writes.push_back({find_span(seen, written), find_span(seen, other), {}});
    }
    if (seen_.size() >= kMostForms) seen_.clear();
    seen_.insert_or_assign(std::move(*form), std::make_shared<Seen>(std::move(seen)));
  }

  // Records that two arguments of a learnt form share no memory at their current distance.
  void learn_apart(const py::tuple& args, int64_t written, int64_t other) {
    const auto seen = find_seen(args);
    if (!seen) return;
    const size_t one = find_span(*seen, written), two = find_span(*seen, other);
    const int64_t distance = address(args, seen->spans[two]) - address(args, seen->spans[one]);
    for (Write& write : seen->writes) {
      if (write.written != one || write.other != two) continue;
      if (write.apart.size() >= kMostDistances) write.apart.clear();
      write.apart.push_back(distance);
    }
  }

 private:
  // Shared ownership: torch's methods may let another thread run, which may clear seen_.
  std::shared_ptr<Seen> find_seen(const py::tuple& args) {
    const std::optional<Form> form = form_of(args);
    if (!form) return nullptr;
    const auto found = seen_.find(*form);
    return found == seen_.end() ? nullptr : found->second;
  }

  std::optional<Form> form_of(const py::tuple& args) {
    Form form;
    form.reserve(16 * args.size());
    if (direct_ && integer(py::object(forward_ad_.attr("_current_level"))) >= 0) return std::nullopt;
    const bool no_gradients = direct_ && is_grad_enabled_().ptr() == Py_True;
    for (const py::handle arg : args) {
      if (!add(arg.ptr(), no_gradients, form)) return std::nullopt;
    }
    return form;
  }

  enum Kind : int64_t { kNone, kTensor, kInt, kBool, kFloat, kDType, kInts };

  bool add(PyObject* arg, bool no_gradients, Form& form) {
    if (arg == Py_None) {
      form.push_back(kNone);
    } else if (Py_TYPE(arg) == type_of(tensor_) || Py_TYPE(arg) == type_of(parameter_) ||
               (!direct_ && PyObject_TypeCheck(arg, type_of(tensor_)))) {
      return add_tensor(arg, no_gradients, form);
    } else if (PyBool_Check(arg)) {
      form.insert(form.end(), {kBool, arg == Py_True});
    } else if (PyLong_CheckExact(arg)) {
      form.push_back(kInt);
      return add_int(arg, form);
    } else if (PyFloat_CheckExact(arg)) {
      form.insert(form.end(), {kFloat, std::bit_cast<int64_t>(PyFloat_AS_DOUBLE(arg))});
    } else if (Py_TYPE(arg) == type_of(dtype_)) {  // each dtype is a single object
      form.insert(form.end(), {kDType, reinterpret_cast<intptr_t>(arg)});
    } else if (PyList_CheckExact(arg) || PyTuple_Check(arg)) {
      form.push_back(kInts);
      return add_ints(arg, form);
    } else {
      return false;
    }
    return true;
  }

  bool add_tensor(PyObject* tensor, bool no_gradients, Form& form) {
    if (direct_ &&
        (!is_dense(tensor) || (no_gradients && attribute(tensor, names_.requires_grad).ptr() == Py_True))) {
      return false;
    }
    form.insert(form.end(), {kTensor, reinterpret_cast<intptr_t>(attribute(tensor, names_.dtype).ptr()),
                             device_of(tensor)});
    return form.back() >= 0 && add_ints(attribute(tensor, names_.shape).ptr(), form) &&
           add_ints(call(tensor, names_.stride).ptr(), form);
  }

  bool is_dense(PyObject* tensor) const {
    return attribute(tensor, names_.layout).is(strided_) &&
           attribute(tensor, names_.is_quantized).ptr() == Py_False &&
           attribute(tensor, names_.is_nested).ptr() == Py_False &&
           call(tensor, names_.is_conj).ptr() == Py_False && call(tensor, names_.is_neg).ptr() == Py_False &&
           call(tensor, names_.is_zerotensor).ptr() == Py_False &&
           is_wrapped_(py::handle(tensor)).ptr() == Py_False;
  }

  // 0: the CPU; 1 and up: CUDA devices in the order first seen; -1: any other device.
  int64_t device_of(PyObject* tensor) {
    if (attribute(tensor, names_.is_cpu).ptr() == Py_True) return 0;
    const py::object device = attribute(tensor, names_.device);
    for (size_t i = 0; i < devices_.size(); ++i) {
      if (devices_[i].equal(device)) return static_cast<int64_t>(i) + 1;
    }
    if (!py::object(device.attr("type")).equal(py::str("cuda"))) return -1;
    devices_.push_back(device);
    return static_cast<int64_t>(devices_.size());
  }

  bool add_ints(PyObject* ints, Form& form) {
    const Py_ssize_t count = PySequence_Fast_GET_SIZE(ints);
    form.push_back(count);
    for (Py_ssize_t i = 0; i < count; ++i) {
      if (!add_int(PySequence_Fast_GET_ITEM(ints, i), form)) return false;
    }
    return true;
  }

  bool add_int(PyObject* number, Form& form) {
    int overflow = 0;
    if (!PyLong_CheckExact(number)) return false;
    form.push_back(PyLong_AsLongLongAndOverflow(number, &overflow));
    return overflow == 0;
  }

  bool lies_well(const py::tuple& args, const Seen& seen) const {
    std::vector<int64_t> begins;
    begins.reserve(seen.spans.size());
    for (const Span& span : seen.spans) {
      PyObject* const tensor = PyTuple_GET_ITEM(args.ptr(), span.index);
      const int64_t offset = integer(call(tensor, names_.storage_offset)) * span.item;
      const py::object storage = call(tensor, names_.untyped_storage);
      if (offset + span.reach > integer(call(storage.ptr(), names_.nbytes))) return false;
      if (!seen.writes.empty()) begins.push_back(address(args, span));
    }
    return std::all_of(seen.writes.begin(), seen.writes.end(), [&](const Write& write) {
      const int64_t distance = begins[write.other] - begins[write.written];
      return distance >= seen.spans[write.written].reach || -distance >= seen.spans[write.other].reach ||
             std::find(write.apart.begin(), write.apart.end(), distance) != write.apart.end();
    });
  }

  int64_t address(const py::tuple& args, const Span& span) const {
    return integer(call(PyTuple_GET_ITEM(args.ptr(), span.index), names_.data_ptr));
  }

  // Index of the argument's span in seen.spans.
  static size_t find_span(const Seen& seen, int64_t index) {
    const auto found = std::find_if(seen.spans.begin(), seen.spans.end(),
                                    [&](const Span& span) { return span.index == index; });
    require(found != seen.spans.end(), "writes: got ", index, ", expected the index of a span");
    return static_cast<size_t>(found - seen.spans.begin());
  }

  static PyTypeObject* type_of(const py::object& type) { return reinterpret_cast<PyTypeObject*>(type.ptr()); }

  const TensorNames& names_ = tensor_names();
  const bool direct_;
  const py::object tensor_, parameter_, dtype_, strided_, is_grad_enabled_, forward_ad_, is_wrapped_;
  std::vector<py::object> devices_;
  std::unordered_map<Form, std::shared_ptr<Seen>, FormHash> seen_;
};

// Locations of a model's weights when their addresses were handed out.
class Places {
 public:
  explicit Places(const py::sequence& tensors) {
    for (const py::handle tensor : tensors) {
      const int64_t begin = integer(call(tensor.ptr(), names_.data_ptr));
      tensors_.push_back(py::reinterpret_borrow<py::object>(tensor));
      begins_.push_back(begin);
      ends_.push_back(begin + integer(attribute(tensor.ptr(), names_.nbytes)));
    }
  }

  bool hold() const {
    for (size_t i = 0; i < tensors_.size(); ++i) {
      if (integer(call(tensors_[i].ptr(), names_.data_ptr)) != begins_[i]) return false;
    }
    return true;
  }

  // Whether any recorded range overlaps the memory from the tensor's first element to the end of its storage.
  bool overlap(const py::object& tensor) const {
    const int64_t address = integer(call(tensor.ptr(), names_.data_ptr));
    const py::object storage = call(tensor.ptr(), names_.untyped_storage);
    const int64_t end =
        integer(call(storage.ptr(), names_.data_ptr)) + integer(call(storage.ptr(), names_.nbytes));
    for (size_t i = 0; i < begins_.size(); ++i) {
      if (begins_[i] < end && address < ends_[i]) return true;
    }
    return false;
  }

 private:
  const TensorNames& names_ = tensor_names();
  std::vector<py::object> tensors_;
  std::vector<int64_t> begins_, ends_;
};

}  // namespace

void bind_forms(py::module_& m) {
  py::class_<Forms>(m, "Forms", py::module_local(), "Argument forms found to match a description.")
      .def(py::init<const py::module_&, bool>(), py::arg("torch"), py::arg("direct"))
      .def("look", &Forms::look, py::arg("args"),
           "The footprint learnt for arguments of this form, if their memory exists and does not overlap; "
           "else None.")
      .def("find", &Forms::find, py::arg("args"),
           "The footprint learnt for arguments of this form; else None.")
      .def("wants_derivative", &Forms::wants_derivative, py::arg("args"),
           "Whether a tensor may require a derivative.")
      .def("learn", &Forms::learn, py::arg("args"), py::arg("footprint"))
      .def("learn_apart", &Forms::learn_apart, py::arg("args"), py::arg("written"), py::arg("other"));
  py::class_<Places>(m, "Places", py::module_local(),
                     "Memory locations of tensors, recorded at construction.")
      .def(py::init<const py::sequence&>(), py::arg("tensors"))
      .def("hold", &Places::hold, "Whether every tensor is still where it was.")
      .def("overlap", &Places::overlap, py::arg("tensor"),
           "Whether a recorded location overlaps memory that this tensor may write.");
}

}  // namespace tts
