// Products with quantised weights without rounding x: weights are converted to float32 a few panels at a
// time. Slow, for comparisons.
#pragma once

#include <cstdint>

#include "cpu/matrix.h"

namespace tts {

class DequantisedLinear {
 public:
  // Throws ArgumentError if sizes do not fit, like QuantisedLinear.
  DequantisedLinear(const LinearTask& task, const QuantPanels& panels);

  // Rows are read in place.
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
