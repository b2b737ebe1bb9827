// bfloat16 storage, and int8 pages with bfloat16 queries, using the dot product of bfloat16 pairs.
// Probabilities are rounded to bfloat16 before P V; other levels keep them in float. The avx512 level handles
// float32.
#include <immintrin.h>

#include "cpu/levels/level_kernels.h"

#define TTS_DOT_PAIRS

namespace tts::avx512_bf16 {
namespace {
#include "cpu/levels/vec_avx512-inl.h"
// after Vec
#include "cpu/levels/pair_kernels-inl.h"
}  // namespace

constinit const BFloat16Kernels kKernels = pair_kernels();

}  // namespace tts::avx512_bf16
