#include <immintrin.h>

#include "cpu/packed_linear_kernels.h"
#include "cpu/row_kernels.h"
#include "cpu/sample_tokens_kernels.h"
#include "cpu/score_pages_kernels.h"
#include "cpu/tree_attention_kernels.h"

namespace tts::avx2 {
namespace {
// clang-format off: each needs the one before
#include "cpu/vec_avx2-inl.h"
#include "cpu/micro_kernels-inl.h"
#include "cpu/tree_attention-inl.h"
#include "cpu/score_pages-inl.h"
#include "cpu/sample_tokens-inl.h"
#include "cpu/packed_linear-inl.h"
#include "cpu/row_ops-inl.h"
// clang-format on
}  // namespace

constinit const AttentionKernels kFloat32 = kernels<Storage::kFloat32>();
constinit const AttentionKernels kBFloat16 = kernels<Storage::kWideBFloat16>();
constinit const AttentionKernels kInt8 = kernels<Storage::kInt8>();
constinit const PageScoreKernels kPageScores = page_score_kernels();
constinit const SampleKernels kSampling = sample_kernels();
constinit const LinearKernels kLinearFloat32 = linear_kernels<Product::kFloats>();
constinit const LinearKernels kLinearBFloat16 = linear_kernels<Product::kHalves>();
constinit const RowKernels kRows = row_kernels();

}  // namespace tts::avx2
