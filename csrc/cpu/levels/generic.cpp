#include "cpu/levels/level_kernels.h"

namespace tts::generic {
namespace {
#include "cpu/levels/vec_generic-inl.h"
// after Vec
#include "cpu/levels/ints_generic-inl.h"
// after Ints
#include "cpu/levels/all_kernels-inl.h"
}  // namespace

constinit const LevelKernels kKernels = all_kernels();

}  // namespace tts::generic
