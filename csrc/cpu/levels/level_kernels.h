// What one instruction-set level provides to the operators.
//
// A level is a translation unit of its own, compiled for its instruction set: levels/<level>.cpp includes the
// level's `Vec` and then the kernels (kernels/*-inl.h), all inside an anonymous namespace. Neither may use
// the standard library, and what they share with other units is plain data: an inline function compiled with
// a level's flags could be the copy that the linker keeps for all.
#pragma once

#include "cpu/kernels/packed_linear_kernels.h"
#include "cpu/kernels/quantised_linear_kernels.h"
#include "cpu/kernels/row_ops_kernels.h"
#include "cpu/kernels/sample_tokens_kernels.h"
#include "cpu/kernels/score_pages_kernels.h"
#include "cpu/kernels/tree_attention_kernels.h"

namespace tts {

struct LevelKernels {
  AttentionKernels attention_float32, attention_bfloat16;  // by dtype of queries and pages
  // int8 pages under queries of float32, and of bfloat16.
  AttentionKernels attention_int8, attention_int8_bfloat16;
  PageScoreKernels page_scores;
  SampleKernels sampling;
  LinearKernels linear_float32, linear_bfloat16;  // by dtype of the weights
  QuantKernels quantised;
  RowKernels rows;
};

// What a level provides whose instructions multiply bfloat16; all else is another level's.
struct BFloat16Kernels {
  AttentionKernels attention, attention_int8;  // by dtype of the pages
  LinearKernels linear;
};

namespace generic {
extern const LevelKernels kKernels;
}
namespace avx2 {
extern const LevelKernels kKernels;
}
namespace avx512 {
extern const LevelKernels kKernels;
}
namespace avx512_vnni {
extern const QuantKernels kKernels;
}
namespace avx512_bf16 {
extern const BFloat16Kernels kKernels;
}
namespace amx {
extern const BFloat16Kernels kKernels;
}
namespace neon {
extern const LevelKernels kKernels;
}
namespace neon_bf16 {
extern const BFloat16Kernels kKernels;
}

}  // namespace tts
