// bfloat16 storage on AMX tiles: pages that rows see as a whole. Pages that a row sees in part, and scores
// where head_dim is no multiple of 32, take the dot product of avx512_bf16. Which of the two multiplies a row
// and page is decided by these alone, so a row's bits do not depend on the rows beside it.
#include <immintrin.h>

#include "cpu/tree_attention_kernels.h"

#define TTS_DOT_PAIRS
#define TTS_TILES

namespace tts::amx {
namespace {
// clang-format off: each needs the one before
#include "cpu/vec_avx512-inl.h"
#include "cpu/micro_kernels-inl.h"
#include "cpu/amx_tiles-inl.h"
#include "cpu/tile_block-inl.h"
#include "cpu/tile_attention-inl.h"
#include "cpu/tree_attention-inl.h"
// clang-format on
}  // namespace

constinit const AttentionKernels kBFloat16 = kernels<Storage::kPairs>();

}  // namespace tts::amx
