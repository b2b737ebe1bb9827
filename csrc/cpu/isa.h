// Instruction-set levels of the CPU kernels. Each level has translation units of its own, compiled for its
// instruction set; which one runs is decided at run time.
#pragma once

#include <string>
#include <vector>

#include "cpu/packed_linear_kernels.h"
#include "cpu/row_kernels.h"
#include "cpu/sample_tokens_kernels.h"
#include "cpu/score_pages_kernels.h"
#include "cpu/tree_attention_kernels.h"

namespace tts {

struct CpuIsa {
  const char* name;
  bool (*supported)();  // CPU and operating system
  AttentionKernels float32, bfloat16, int8;
  PageScoreKernels page_scores;
  SampleKernels sampling;
  LinearKernels linear_float32, linear_bfloat16;
  RowKernels rows;
};

// All levels compiled in, best first.
const std::vector<CpuIsa>& cpu_isa_levels();

// The level that kernels use: the one forced by set_cpu_isa, else the one named by the environment variable
// TTS_KERNELS_FORCE_CPU_ISA, else the best that this machine supports. Throws ArgumentError where the forced
// one is unknown or unsupported.
const CpuIsa& cpu_isa();

// Forces a level for this process; an empty name returns to the default choice.
void set_cpu_isa(const std::string& name);

}  // namespace tts
