// 128-bit vectors of floats with fused multiply-add, for any AArch64. The neon_bf16 level defines
// TTS_DOT_PAIRS before including this.
#pragma once

#include "cpu/levels/vec_base-inl.h"

struct Vec : VecBase {
  using F = float32x4_t;
  static constexpr int kLanes = 4;
  // 6 x 4 vectors of sums (a column is four vectors) + 4 operands + 1 broadcast of the 32 registers.
  static constexpr int kRows = 6, kColumns = 1;

  static F set1(float x) { return vdupq_n_f32(x); }
  static F load(const void* p) { return vld1q_f32(static_cast<const float*>(p)); }
  static F load_int8(const int8_t* p) {
    int32_t bytes;
    __builtin_memcpy(&bytes, p, sizeof(bytes));
    const int16x8_t wide = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(bytes)));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
  }
  static void store(void* p, F x) { vst1q_f32(static_cast<float*>(p), x); }
  static F broadcast(const uint32_t* word) { return vreinterpretq_f32_u32(vld1q_dup_u32(word)); }

  static F add(F a, F b) { return vaddq_f32(a, b); }
  static F sub(F a, F b) { return vsubq_f32(a, b); }
  static F mul(F a, F b) { return vmulq_f32(a, b); }
  static F div(F a, F b) { return vdivq_f32(a, b); }
  static F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
  static F max(F a, F b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }  // b if either is NaN
  static float sum(F x) { return vaddvq_f32(x); }
  static float max_of(F x) { return vmaxvq_f32(x); }

  static F abs(F x) { return vabsq_f32(x); }
  static F copy_sign(F magnitude, F sign) { return vbslq_f32(vdupq_n_u32(0x80000000u), sign, magnitude); }
  static F bits_shifted_left(F x, int n) {
    return vreinterpretq_f32_u32(vshlq_u32(vreinterpretq_u32_f32(x), vdupq_n_s32(n)));
  }
  // x where not (test < bound), else 0; keeps x where test is NaN.
  static F zero_below(F test, F bound, F x) {
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(x), vcltq_f32(test, bound)));
  }

  // The two bfloat16 of each word as floats: bits 0..15, bits 16..31.
  static F low_half(F words) { return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(words), 16)); }
  static F high_half(F words) {
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(words), vdupq_n_u32(0xffff0000u)));
  }

#ifdef TTS_DOT_PAIRS
  // Pairs from two vectors whose floats are exact in bfloat16.
  static F pairs_of(F low, F high) {
    return vreinterpretq_f32_u32(vsriq_n_u32(vreinterpretq_u32_f32(high), vreinterpretq_u32_f32(low), 16));
  }
  // sum + a.high * b.high + a.low * b.low, per word; rounded to odd where the CPU has no FEAT_EBF16.
  static F dot_pairs(F a, F b, F sum) {
    return vbfdotq_f32(sum, vreinterpretq_bf16_f32(a), vreinterpretq_bf16_f32(b));
  }
  // 4 floats as 4 bfloat16, rounded to nearest even.
  static void store_bf16(void* p, F x) { vst1_bf16(static_cast<bfloat16_t*>(p), vcvt_bf16_f32(x)); }
#endif
};
