// Products with quantised weights: a row of x becomes int8, with a scale for each 32 inputs, then units are
// multiplied, each step on any threads and in any order.
#pragma once

#include <cstdint>

#include "cpu/matrix.h"

namespace tts {

// Throws ArgumentError where the form is none that kernels serve.
QuantLayout quant_layout(const QuantForm& form);

// The same for panels of so many inputs, a multiple of 32. Throws ArgumentError where they do not fit, or
// where their order leads out of the inputs.
QuantLayout layout_for(const QuantPanels& panels, int64_t inputs);

class QuantisedLinear {
 public:
  // Throws ArgumentError where sizes do not fit.
  QuantisedLinear(const LinearTask& task, const QuantPanels& panels, int num_threads);

  // Whether both read the same converted rows of the same x.
  bool shares_rows(const QuantisedLinear& other) const;
  int64_t row_words() const { return task_.x.count * stride_; }  // of memory for the converted rows
  int64_t bands() const { return task_.x.count; }                // of rows to convert
  void convert(int64_t row, uint32_t* rows) const;

  int64_t units() const { return row_units_ * panel_units_; }
  void multiply(int64_t unit, const uint32_t* rows) const;

 private:
  LinearTask task_;
  QuantPanels panels_;
  QuantLayout layout_;
  const QuantKernels* kernels_;
  int64_t stride_;  // words of a converted row
  int64_t row_units_, panel_units_;
};

}  // namespace tts
