// Products with quantised weights. First each row of x is converted to int8 with one scale per 32 inputs;
// then units are multiplied. Either step may run on any threads, in any order.
#pragma once

#include <cstdint>

#include "cpu/matrix.h"

namespace tts {

// Throws ArgumentError if no kernel supports the form.
QuantLayout quant_layout(const QuantForm& form);

// The layout of panels with `inputs` inputs, a multiple of 32. Throws ArgumentError if the sizes do not fit
// or the order has an index out of range.
QuantLayout layout_for(const QuantPanels& panels, int64_t inputs);

class QuantisedLinear {
 public:
  // Throws ArgumentError if sizes do not fit.
  QuantisedLinear(const LinearTask& task, const QuantPanels& panels, int num_threads);

  // Whether both read the same converted rows, of the same x.
  bool shares_rows(const QuantisedLinear& other) const;
  int64_t row_words() const { return task_.x.count * stride_; }  // words of memory for the converted rows
  int64_t bands() const { return task_.x.count; }                // rows to convert
  void convert(int64_t row, uint32_t* rows) const;

  int64_t units() const { return row_units_ * panel_units_; }
  void multiply(int64_t unit, const uint32_t* rows) const;

 private:
  LinearTask task_;
  QuantPanels panels_;
  QuantLayout layout_;
  const QuantKernels* kernels_;
  int64_t stride_;  // words per converted row
  int64_t row_units_, panel_units_;
};

}  // namespace tts
