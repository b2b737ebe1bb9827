// One function for each bindings file; module.cpp calls them all.
#pragma once

#include <pybind11/pybind11.h>

namespace tts {
void bind_tree(pybind11::module_& m);
void bind_work_plan(pybind11::module_& m);  // bind_tree.cpp: KVTree, plan
void bind_cpu(pybind11::module_& m);        // bind_cpu.cpp: CPU kernels and ISA selection
void bind_decoder(pybind11::module_& m);    // bind_decoder.cpp: layers of a model; call after bind_cpu
void bind_forms(pybind11::module_& m);      // bind_forms.cpp: checks arguments of a known form
void bind_cuda(pybind11::module_& m);       // bind_cuda.cpp: launches CUDA kernels, if built
}  // namespace tts
