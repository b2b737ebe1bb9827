// Products with quantised weights without rounding x: weights become float32 a few panels at a time. Slow,
// for comparisons.
#pragma once

#include <cstdint>

#include "cpu/matrix.h"

namespace tts {

class DequantisedLinear {
 public:
  // Throws ArgumentError where sizes do not fit, as for QuantisedLinear.
  DequantisedLinear(const LinearTask& task, const QuantPanels& panels);

  // Rows are read as they lie.
  int64_t row_words() const { return 0; }
  int64_t bands() const { return 0; }
  void convert(int64_t, uint32_t*) const {}

  int64_t units() const;
  void multiply(int64_t unit, const uint32_t* rows) const;

 private:
  LinearTask task_;
  QuantPanels panels_;
  int64_t panel_bytes_;
};

}  // namespace tts
