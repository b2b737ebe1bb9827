// Kernels that an instruction-set level provides to the operators.
//
// Each level is its own translation unit, compiled for its instruction set: levels/<level>.cpp includes the
// level's `Vec` and then the kernels (kernels/*-inl.h), all inside an anonymous namespace. Neither may use
// the standard library, and they share only plain data with other units: the linker could otherwise keep, for
// all units, an inline function compiled with a level's flags.
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
  // For int8 pages, with float32 and with bfloat16 queries.
  AttentionKernels attention_int8, attention_int8_bfloat16;
  PageScoreKernels page_scores;
  SampleKernels sampling;
  LinearKernels linear_float32, linear_bfloat16;  // by dtype of the weights
  QuantKernels quantised;
  RowKernels rows;
};

// Kernels of a level that adds bfloat16 instructions; another level provides the rest.
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
