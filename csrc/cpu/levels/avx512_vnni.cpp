// Quantised weights, using the dot product of bytes; the avx512 level handles everything else.
#include <immintrin.h>

#include "cpu/levels/level_kernels.h"

#define TTS_DOT_BYTES

namespace tts::avx512_vnni {
namespace {
#include "cpu/levels/vec_avx512-inl.h"
// after Vec
#include "cpu/levels/ints_avx512-inl.h"
// after Ints
#include "cpu/kernels/quantised_linear-inl.h"
}  // namespace

constinit const QuantKernels kKernels = quantised_kernels();

}  // namespace tts::avx512_vnni
