// bfloat16 storage, and int8 pages under bfloat16 queries, through BFDOT, the dot product of bfloat16 pairs;
// all else is served by the neon level. Probabilities are rounded to bfloat16 before P V, as at avx512_bf16.
// BFMMLA would need four channels of a token side by side, which packed pages do not have.
#include <arm_neon.h>

#include "cpu/levels/level_kernels.h"

#define TTS_DOT_PAIRS

namespace tts::neon_bf16 {
namespace {
#include "cpu/levels/vec_neon-inl.h"
// after Vec
#include "cpu/levels/pair_kernels-inl.h"
}  // namespace

constinit const BFloat16Kernels kKernels = pair_kernels();

}  // namespace tts::neon_bf16
