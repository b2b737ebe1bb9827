// 128-bit compiler vectors, for any CPU. Multiply and add round separately (-ffp-contract=off), so every
// machine gives the same bits.
#pragma once

#include "cpu/levels/vec_base-inl.h"

struct Vec : VecBase {
  typedef float F __attribute__((vector_size(16)));
  typedef uint32_t U __attribute__((vector_size(16)));
  static constexpr int kLanes = 4;
  // 2 x 4 vectors of sums (a column is four vectors) + 4 operands + 1 broadcast of 16 registers.
  static constexpr int kRows = 2, kColumns = 1;

  static F set1(float x) { return F{x, x, x, x}; }
  static F load(const void* p) {
    F x;
    __builtin_memcpy(&x, p, sizeof(x));
    return x;
  }
  static F load_int8(const int8_t* p) {
    int8_t bytes __attribute__((vector_size(4)));
    __builtin_memcpy(&bytes, p, sizeof(bytes));
    return __builtin_convertvector(bytes, F);
  }
  static void store(void* p, F x) { __builtin_memcpy(p, &x, sizeof(x)); }
  static F broadcast(const uint32_t* word) { return (F)U{*word, *word, *word, *word}; }

  static F add(F a, F b) { return a + b; }
  static F sub(F a, F b) { return a - b; }
  static F mul(F a, F b) { return a * b; }
  static F div(F a, F b) { return a / b; }
  static F fma(F a, F b, F c) { return a * b + c; }
  static F max(F a, F b) { return select((U)(a > b), a, b); }  // b if either is NaN
  static float sum(F x) { return (x[0] + x[2]) + (x[1] + x[3]); }
  static float max_of(F x) {
    const float a = x[0] > x[1] ? x[0] : x[1], b = x[2] > x[3] ? x[2] : x[3];
    return a > b ? a : b;
  }

  static F abs(F x) { return (F)((U)x & 0x7fffffffu); }
  static F copy_sign(F magnitude, F sign) { return (F)((U)magnitude | ((U)sign & 0x80000000u)); }
  static F bits_shifted_left(F x, int n) { return (F)((U)x << n); }
  // x where not (test < bound), else 0; keeps x where test is NaN.
  static F zero_below(F test, F bound, F x) { return (F)((U)x & ~(U)(test < bound)); }

  // The two bfloat16 of each word as floats: bits 0..15, bits 16..31.
  static F low_half(F words) { return bits_shifted_left(words, 16); }
  static F high_half(F words) { return (F)((U)words & 0xffff0000u); }

  static F select(U mask, F a, F b) { return (F)(((U)a & mask) | ((U)b & ~mask)); }
};
