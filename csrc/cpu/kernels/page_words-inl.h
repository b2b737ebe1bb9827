// Converts pages to the words that the micro-kernels multiply.
#pragma once

#include "cpu/kernels/micro_kernels-inl.h"

// How pages become operand words. Conversion runs once for all rows, or in registers for few rows.
enum class Storage {
  kFloat32,       // unchanged
  kWideBFloat16,  // bfloat16 widened to float
  kPairs,         // bfloat16 pairs, unchanged
  kInt8,          // int8 converted to float
  kInt8Pairs,     // int8 converted to pairs of bfloat16, exactly; queries are bfloat16
};

constexpr bool is_int8(Storage storage) {
  return storage == Storage::kInt8 || storage == Storage::kInt8Pairs;
}
constexpr bool is_pairs(Storage storage) {
  return storage == Storage::kPairs || storage == Storage::kInt8Pairs;
}

template <Storage kStorage>
struct ElementOf {
  using Type = uint16_t;
};
template <>
struct ElementOf<Storage::kFloat32> {
  using Type = float;
};
template <>
struct ElementOf<Storage::kInt8> {
  using Type = int8_t;
};
template <>
struct ElementOf<Storage::kInt8Pairs> : ElementOf<Storage::kInt8> {};

template <Storage kStorage>
struct PageWords {
  using Element = typename ElementOf<kStorage>::Type;
  static constexpr bool kPairs = is_pairs(kStorage), kInt8 = is_int8(kStorage);
  static constexpr bool kWidens = kInt8 || kStorage == Storage::kWideBFloat16;

  static constexpr Product kProduct = kPairs ? Product::kPairs : Product::kFloats;
  // The product on pages in place, if kWidens.
  static constexpr Product kThinProduct = kStorage == Storage::kInt8Pairs ? Product::kBytePairs
                                          : kInt8                         ? Product::kBytes
                                                                          : Product::kHalves;
  // Up to this many rows, widening a page beforehand does not pay: one block of rows for bytes as pairs, the
  // slowest conversion. Tiles multiply from memory.
#ifdef TTS_TILES
  static constexpr int kThinRows = 0;
#else
  static constexpr int kThinRows = kStorage == Storage::kInt8Pairs ? Vec::kRows : 8;
#endif
  // Pages multiplied, and widened, together.
#ifdef TTS_TILES
  static constexpr int kBatchPages = kWidens ? 8 : 16;  // 4 unwidened pages make fan-outs 5 to 8 % slower
#else
  static constexpr int kBatchPages = 4;
#endif
  static constexpr int kWordsPerPage = kPairs ? kPageSize / 2 : kPageSize;  // of a row of probabilities
  // Pages of operands in ChunkScratch::operands: a batch and one more after it.
  static constexpr int kWidePages = kWidens ? kBatchPages + 1 : 0;

  // Ahead::shift: operand words number 1, 2 or 4 times the words in memory.
  static constexpr int fetch_shift(bool thin) {
    return kStorage == Storage::kInt8 ? 2 : kStorage == Storage::kInt8Pairs || (kWidens && !thin) ? 1 : 0;
  }

  // Widens K [head_dim][16] or V [16][head_dim] of a head's page; as pairs it has `rows` rows of `width`
  // words.
  static void widen(const uint32_t* page, int rows, int width, uint32_t* out) {
    constexpr int kWords = kStorage == Storage::kInt8 ? 2 : 1;  // rows of words per row of pairs
    for (int row = 0; row < kWords * rows * width; row += width) {
      for (int i = 0; i < width; i += Vec::kLanes) {
        const F words = load_words<kThinProduct>(page, row, i, width);
        if constexpr (kStorage == Storage::kWideBFloat16) {
          Vec::store(out + 2 * row + i, Vec::low_half(words));
          Vec::store(out + 2 * row + width + i, Vec::high_half(words));
        } else {
          Vec::store(out + row + i, words);
        }
      }
    }
  }
};
