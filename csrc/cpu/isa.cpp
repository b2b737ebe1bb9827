#include "cpu/isa.h"

#include <atomic>
#include <cstdlib>

#if defined(TTS_AMX) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "common/error.h"

namespace tts {
namespace {

#if defined(__x86_64__)
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#if defined(TTS_EMULATE_BF16_DOT)
bool has_avx512_bf16() { return has_avx512(); }
#else
bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
#endif
#endif

#if defined(TTS_AMX) && defined(TTS_EMULATE_BF16_DOT)
bool has_amx() { return has_avx512(); }
#elif defined(TTS_AMX)
// Linux keeps the tiles of a process, of all its threads, once it has asked for that. Refused where the
// kernel does not know them, or where a thread's signal stack is too small for them.
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
bool always() { return true; }

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
  static const std::vector<CpuIsa> levels = {
#if defined(TTS_AMX)
      {"amx", has_amx, avx512::kFloat32, amx::kBFloat16, avx512::kInt8, avx512::kPageScores,
       avx512::kSampling, avx512::kLinearFloat32, amx::kLinearBFloat16, avx512::kRows},
#endif
#if defined(__x86_64__)
      {"avx512_bf16", has_avx512_bf16, avx512::kFloat32, avx512_bf16::kBFloat16, avx512::kInt8,
       avx512::kPageScores, avx512::kSampling, avx512::kLinearFloat32, avx512_bf16::kLinearBFloat16,
       avx512::kRows},
      {"avx512", has_avx512, avx512::kFloat32, avx512::kBFloat16, avx512::kInt8, avx512::kPageScores,
       avx512::kSampling, avx512::kLinearFloat32, avx512::kLinearBFloat16, avx512::kRows},
      {"avx2", has_avx2, avx2::kFloat32, avx2::kBFloat16, avx2::kInt8, avx2::kPageScores, avx2::kSampling,
       avx2::kLinearFloat32, avx2::kLinearBFloat16, avx2::kRows},
#endif
      {"generic", always, generic::kFloat32, generic::kBFloat16, generic::kInt8, generic::kPageScores,
       generic::kSampling, generic::kLinearFloat32, generic::kLinearBFloat16, generic::kRows},
  };
  return levels;
}

const CpuIsa& cpu_isa() {
  if (const CpuIsa* level = forced.load(std::memory_order_acquire)) return *level;
  // Retried at each call until it succeeds: a bad name stays an error, it never becomes a silent default.
  static const CpuIsa& level = default_level();
  return level;
}

void set_cpu_isa(const std::string& name) {
  forced.store(name.empty() ? nullptr : &find_level("name", name), std::memory_order_release);
}

}  // namespace tts
