#include <pybind11/stl.h>

#include "bindings/bindings.h"
#include "bindings/gil.h"
#include "common/error.h"

namespace py = pybind11;

PYBIND11_MODULE(_core, m) {
  m.doc() =
      "C++ core of tts_kernels: page pool, KV tree, planner, CPU and CUDA kernels. Knows nothing of torch.";
  // Lives as long as the module: the exception type must outlive every frame that may raise it.
  py::register_exception<tts::OutOfPages>(m, "OutOfPages", PyExc_RuntimeError);
  py::register_exception<tts::CapacityExceeded>(m, "CapacityExceeded", PyExc_ValueError);
  tts::bind_tree(m);
  tts::bind_work_plan(m);
  tts::bind_cpu(m);
  tts::bind_cuda(m);
  m.def("park_threads", &tts::park_threads);
  m.def("unparked_threads", &tts::unparked_threads);
}
