// bfloat16 storage through the dot product of bfloat16 pairs: probabilities are rounded to bfloat16 before P
// V, where the other levels keep them in float. Float32 and int8 storage are served by the avx512 level.
#include <immintrin.h>

#include "cpu/packed_linear_kernels.h"
#include "cpu/tree_attention_kernels.h"

#define TTS_DOT_PAIRS

namespace tts::avx512_bf16 {
namespace {
// clang-format off: each needs the one before
#include "cpu/vec_avx512-inl.h"
#include "cpu/micro_kernels-inl.h"
#include "cpu/tree_attention-inl.h"
#include "cpu/packed_linear-inl.h"
// clang-format on
}  // namespace

constinit const AttentionKernels kBFloat16 = kernels<Storage::kPairs>();
constinit const LinearKernels kLinearBFloat16 = linear_kernels<Product::kPairs>();

}  // namespace tts::avx512_bf16
