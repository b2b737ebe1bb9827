// Runs tests at every instruction-set level.
#pragma once

#include <cstdint>
#include <cstdio>

#include "cpu/runtime/isa.h"
#include "tests/check.h"

namespace tts::test {

// Calls body(seed) for seeds 0 .. seeds - 1 at each level that this machine supports. The first call of
// cpu_isa() rejects a level named by the environment that the machine does not support.
template <class Body>
void at_each_level(uint32_t seeds, const Body& body) {
  std::printf("default level: %s\n", cpu_isa().name);
  for (const CpuIsa& level : cpu_isa_levels()) {
    if (!level.supported()) continue;
    set_cpu_isa(level.name);
    const int before = failures();
    for (uint32_t seed = 0; seed < seeds; ++seed) body(seed);
    std::printf("%s: %d failures\n", level.name, failures() - before);
  }
}

}  // namespace tts::test
