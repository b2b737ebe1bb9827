// Instruction-set levels of the CPU kernels, selected at run time.
#pragma once

#include <string>
#include <vector>

#include "cpu/levels/level_kernels.h"

namespace tts {

struct CpuIsa {
  const char* name;
  bool (*supported)();  // CPU and operating system
  LevelKernels kernels;
};

// All levels compiled in, best first.
const std::vector<CpuIsa>& cpu_isa_levels();

// The level in use: the one forced by set_cpu_isa, else the one named by the environment variable
// TTS_KERNELS_FORCE_CPU_ISA, else the best that this machine supports. Throws ArgumentError if a forced level
// is unknown or unsupported.
const CpuIsa& cpu_isa();

// Forces a level for this process; an empty name returns to the default choice.
void set_cpu_isa(const std::string& name);

}  // namespace tts
