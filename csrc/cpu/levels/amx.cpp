// bfloat16 on AMX tiles: products with weights, and with pages that rows see entirely, bfloat16 or converted
// from int8. Pages that a row sees in part, and scores if head_dim is no multiple of 32, use the dot product
// of avx512_bf16. The choice depends only on the row and page, so a row's bits do not depend on the rows
// beside it.
#include <immintrin.h>

#include "cpu/levels/level_kernels.h"

#define TTS_DOT_PAIRS
#define TTS_TILES

namespace tts::amx {
namespace {
#include "cpu/levels/vec_avx512-inl.h"
// after Vec
#include "cpu/kernels/tile_linear-inl.h"
#include "cpu/kernels/tree_attention-inl.h"
}  // namespace

constinit const BFloat16Kernels kKernels = {.attention = attention_kernels<Storage::kPairs>(),
                                            .attention_int8 = attention_kernels<Storage::kInt8Pairs>(),
                                            .linear = tile_linear_kernels()};

}  // namespace tts::amx
