// bfloat16 storage, and int8 pages with bfloat16 queries, using BFDOT, the dot product of bfloat16 pairs; the
// neon level handles everything else. Probabilities are rounded to bfloat16 before P V, as in avx512_bf16.
// BFMMLA would need four adjacent channels of a token, which packed pages do not have.
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
