#include "cpu/runtime/isa.h"

#include <atomic>
#include <cstdlib>

#if defined(TTS_AMX) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#include "common/error.h"

namespace tts {
namespace {

#if defined(__x86_64__)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#if defined(TTS_EMULATE_BF16_DOT)
bool has_avx512_vnni() { return has_avx512(); }
bool has_avx512_bf16() { return has_avx512(); }
#else
bool has_avx512_vnni() { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }
bool has_avx512_bf16() { return has_avx512_vnni() && __builtin_cpu_supports("avx512bf16"); }
#endif
#endif

#if defined(TTS_AMX) && defined(TTS_EMULATE_BF16_DOT)
bool has_amx() { return has_avx512(); }
#elif defined(TTS_AMX)
// Asks Linux for permission to use tiles, for all threads of the process. Refused if the kernel does not
// support tiles, or if a thread's signal stack is too small for them.
bool may_use_tiles() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
bool has_amx() {
  static const bool granted = has_avx512_bf16() && __builtin_cpu_supports("amx-tile") &&
                              __builtin_cpu_supports("amx-bf16") && may_use_tiles();
  return granted;
}
#endif

#if defined(__aarch64__)
bool has_neon_bf16() {
#if defined(__linux__)
  constexpr unsigned long kBFloat16 = 1ul << 14;  // HWCAP2_BF16
  return (getauxval(AT_HWCAP2) & kBFloat16) != 0;
#elif defined(__APPLE__)
  int found = 0;
  size_t size = sizeof(found);
  return sysctlbyname("hw.optional.arm.FEAT_BF16", &found, &size, nullptr, 0) == 0 && found != 0;
#else
  return false;
#endif
}
#endif

bool always() { return true; }

[[maybe_unused]] LevelKernels with_quantised(LevelKernels kernels, const QuantKernels& quantised) {
  kernels.quantised = quantised;
  return kernels;
}

[[maybe_unused]] LevelKernels with_bfloat16(LevelKernels kernels, const BFloat16Kernels& bfloat16) {
  kernels.attention_bfloat16 = bfloat16.attention;
  kernels.attention_int8_bfloat16 = bfloat16.attention_int8;
  kernels.linear_bfloat16 = bfloat16.linear;
  return kernels;
}

std::atomic<const CpuIsa*> forced{nullptr};

const CpuIsa& find_level(const char* argument, const std::string& name) {
  std::string known;
  for (const CpuIsa& level : cpu_isa_levels()) {
    if (level.name == name) {
      require(level.supported(), argument, ": got '", name,
              "', which this CPU, or its operating system, does not support");
      return level;
    }
    known += known.empty() ? level.name : std::string(", ") + level.name;
  }
  throw ArgumentError(concat(argument, ": got '", name, "', expected one of ", known));
}

const CpuIsa& default_level() {
  const char* name = std::getenv("TTS_KERNELS_FORCE_CPU_ISA");
  if (name != nullptr && *name != '\0') return find_level("TTS_KERNELS_FORCE_CPU_ISA", name);
  for (const CpuIsa& level : cpu_isa_levels()) {
    if (level.supported()) return level;
  }
  return cpu_isa_levels().back();
}

}  // namespace

const std::vector<CpuIsa>& cpu_isa_levels() {
#if defined(__x86_64__)
  static const LevelKernels vnni = with_quantised(avx512::kKernels, avx512_vnni::kKernels);
#endif
  static const std::vector<CpuIsa> levels = {
#if defined(TTS_AMX)
      {.name = "amx", .supported = has_amx, .kernels = with_bfloat16(vnni, amx::kKernels)},
#endif
#if defined(__x86_64__)
      {.name = "avx512_bf16",
       .supported = has_avx512_bf16,
       .kernels = with_bfloat16(vnni, avx512_bf16::kKernels)},
      {.name = "avx512_vnni", .supported = has_avx512_vnni, .kernels = vnni},
      {.name = "avx512", .supported = has_avx512, .kernels = avx512::kKernels},
      {.name = "avx2", .supported = has_avx2, .kernels = avx2::kKernels},
#elif defined(__aarch64__)
      {.name = "neon_bf16",
       .supported = has_neon_bf16,
       .kernels = with_bfloat16(neon::kKernels, neon_bf16::kKernels)},
      {.name = "neon", .supported = always, .kernels = neon::kKernels},
#endif
      {.name = "generic", .supported = always, .kernels = generic::kKernels},
  };
  return levels;
}

const CpuIsa& cpu_isa() {
  if (const CpuIsa* level = forced.load(std::memory_order_acquire)) return *level;
  // Retried on each call until it succeeds: a bad name stays an error and never silently becomes a default.
  static const CpuIsa& level = default_level();
  return level;
}

void set_cpu_isa(const std::string& name) {
  forced.store(name.empty() ? nullptr : &find_level("name", name), std::memory_order_release);
}

}  // namespace tts
