// Binds the launches of the CUDA kernels. Tensors are passed as in bind_cpu.cpp, a stream as torch's integer
// handle. The Python module tts_kernels.backends.cuda checks dtypes, shapes and devices.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <sstream>
#include <string>
#include <utility>

#include "bindings/arguments.h"
#include "bindings/bindings.h"
#include "bindings/gil.h"

#ifdef TTS_CUDA_ARCHS
#include "cuda/tree_attention.h"
#endif

namespace py = pybind11;

namespace tts {

#ifdef TTS_CUDA_ARCHS

namespace {

using cuda::Pages;
using cuda::Rows;
using cuda::WorkLaunch;

Pages make_pages(uintptr_t k, uintptr_t v, const std::array<int64_t, 3>& k_strides,
                 const std::array<int64_t, 3>& v_strides, const std::array<int64_t, 4>& shape,
                 int element_bytes) {
  return {{pointer<void>(k), k_strides[0], k_strides[1], k_strides[2]},
          {pointer<void>(v), v_strides[0], v_strides[1], v_strides[2]},
          shape[0],
          static_cast<int32_t>(shape[1]),
          static_cast<int32_t>(shape[2]),
          static_cast<int32_t>(shape[3]),
          element_bytes};
}

WorkLaunch make_launch(uintptr_t work, uintptr_t partials, const std::array<int64_t, 5>& capacity,
                       int64_t num_items, int64_t num_merges) {
  return {pointer<int32_t>(work),
          pointer<float>(partials),
          {capacity[0], capacity[1], capacity[2], capacity[3], capacity[4]},
          num_items,
          num_merges};
}

py::tuple built_archs() {  // parses "80-real,90-real,..."
  py::list archs;
  std::istringstream text(TTS_CUDA_ARCHS);
  for (std::string arch; std::getline(text, arch, ',');) archs.append(arch);
  return py::tuple(archs);
}

void bind_launches(py::module_& m) {
  m.def(
      "append_kv",
      [](const Pages& pages, const Rows& k, const Rows& v, uintptr_t slots, int64_t num_tokens,
         uintptr_t stream) {
        GilRelease release;
        cuda::append_kv(pages, k, v, pointer<int32_t>(slots), num_tokens, pointer<void>(stream));
      },
      py::arg("pages"), py::arg("k"), py::arg("v"), py::arg("slots"), py::arg("num_tokens"),
      py::arg("stream"));
  m.def(
      "copy_pages",
      [](const Pages& pages, int64_t num_layers, std::pair<int64_t, int64_t> layer_strides, uintptr_t copies,
         int64_t num_copies, uintptr_t stream) {
        GilRelease release;
        cuda::copy_pages(pages, num_layers, layer_strides.first, layer_strides.second,
                         pointer<int32_t>(copies), num_copies, pointer<void>(stream));
      },
      py::arg("pages"), py::arg("num_layers"), py::arg("layer_strides"), py::arg("copies"),
      py::arg("num_copies"), py::arg("stream"));
  m.def(
      "tree_attention",
      [](const Pages& pages, const Rows& q, int64_t num_q_rows, int32_t num_q_heads, bool bfloat16,
         const WorkLaunch& launch, uintptr_t out, uintptr_t lse, float scale, int32_t window,
         float logits_soft_cap, uintptr_t sinks, uintptr_t stream) {
        GilRelease release;
        cuda::tree_attention(
            {pages, q, num_q_rows, num_q_heads, bfloat16 ? cuda::DType::kBFloat16 : cuda::DType::kFloat16,
             launch, pointer<void>(out), pointer<float>(lse), scale, window, logits_soft_cap,
             pointer<float>(sinks)},
            pointer<void>(stream));
      },
      py::arg("pages"), py::arg("q"), py::arg("num_q_rows"), py::arg("num_q_heads"), py::arg("bfloat16"),
      py::arg("launch"), py::arg("out"), py::arg("lse"), py::arg("scale"), py::arg("window"),
      py::arg("logits_soft_cap"), py::arg("sinks"), py::arg("stream"));
}

}  // namespace

void bind_cuda(py::module_& m) {
  m.attr("cuda_archs") = built_archs();
  py::module_ launches =
      m.def_submodule("cuda", "Launches of CUDA kernels; tts_kernels.backends.cuda calls them.");
  py::class_<Pages>(launches, "Pages", py::module_local())
      .def(py::init(&make_pages), py::arg("k"), py::arg("v"), py::arg("k_strides"), py::arg("v_strides"),
           py::arg("shape"), py::arg("element_bytes"));
  py::class_<Rows>(launches, "Rows", py::module_local())
      .def(py::init([](uintptr_t data, std::pair<int64_t, int64_t> strides) {
             return Rows{pointer<void>(data), strides.first, strides.second};
           }),
           py::arg("data"), py::arg("strides"));
  py::class_<WorkLaunch>(launches, "WorkLaunch", py::module_local())
      .def(py::init(&make_launch), py::arg("work"), py::arg("partials"), py::arg("capacity"),
           py::arg("num_items"), py::arg("num_merges"));
  bind_launches(launches);
}

#else

void bind_cuda(py::module_& m) { m.attr("cuda_archs") = py::tuple(); }

#endif

}  // namespace tts
