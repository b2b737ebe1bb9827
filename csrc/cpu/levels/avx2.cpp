#include <immintrin.h>

#include "cpu/levels/level_kernels.h"

namespace tts::avx2 {
namespace {
#include "cpu/levels/vec_avx2-inl.h"
// after Vec
#include "cpu/levels/ints_avx2-inl.h"
// after Ints
#include "cpu/levels/all_kernels-inl.h"
}  // namespace

constinit const LevelKernels kKernels = all_kernels();

}  // namespace tts::avx2
