// Default operations of a `Vec`, unless it has a faster one.
#pragma once

struct VecBase {
  // out[16 i + j] = rows[j][i] for 16 rows of 16 words.
  static void transpose_words(const uint32_t* const* rows, uint32_t* out) {
    for (int i = 0; i < 16; ++i) {
      for (int j = 0; j < 16; ++j) out[16 * i + j] = rows[j][i];
    }
  }
};
