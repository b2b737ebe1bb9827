#include <pybind11/stl.h>

#include "bindings/bindings.h"
#include "bindings/gil.h"
#include "common/error.h"

namespace py = pybind11;

namespace {

// The classes of `errors.py`, which is beside this module under any package name. Never freed: they must
// outlive every frame that may raise one.
struct Errors {
  py::object out_of_pages, capacity_exceeded;
};
Errors* errors;

void translate(std::exception_ptr thrown) {
  try {
    if (thrown) std::rethrow_exception(thrown);
  } catch (const tts::OutOfPagesError& error) {
    py::set_error(errors->out_of_pages, error.what());
  } catch (const tts::CapacityError& error) {
    py::set_error(errors->capacity_exceeded, error.what());
  }
}

}  // namespace

// Types and exceptions are module-local: a copy of the package under another name has its own.
PYBIND11_MODULE(_core, m) {
  m.doc() = "C++ core of tts_kernels: page pool, KV tree, planner, CPU and CUDA kernels. Links to no torch.";
  const auto name = m.attr("__name__").cast<std::string>();
  const py::module_ module = py::module_::import((name.substr(0, name.rfind('.')) + ".errors").c_str());
  errors = new Errors{module.attr("OutOfPagesError"), module.attr("CapacityError")};
  py::register_local_exception_translator(&translate);
  tts::bind_tree(m);
  tts::bind_work_plan(m);
  tts::bind_forms(m);
  tts::bind_cpu(m);
  tts::bind_decoder(m);
  tts::bind_cuda(m);
  m.def("park_threads", &tts::park_threads);
  m.def("unparked_threads", &tts::unparked_threads);
}
