// Products with float weights. First rows are converted to the format kernels read; then units are
// multiplied. Either step may run on any threads, in any order.
#pragma once

#include <cstdint>

#include "cpu/matrix.h"

namespace tts {

class PackedLinear {
 public:
  // Throws ArgumentError if sizes do not fit.
  PackedLinear(const LinearTask& task, const FloatPanels& panels, int num_threads);

  int64_t row_words() const;  // words of memory for the converted rows; 0: rows are read in place
  int64_t bands() const;      // bands of rows to convert
  void convert(int64_t band, uint32_t* rows) const;

  int64_t units() const { return row_units_ * panel_units_; }
  void multiply(int64_t unit, const uint32_t* rows) const;

 private:
  void convert_row(int64_t row, uint32_t* out) const;
  bool reads_rows_as_they_lie() const;

  LinearTask task_;
  FloatPanels panels_;
  const LinearKernels* kernels_;
  int64_t words_;    // words per output's weights
  int64_t x_words_;  // words per converted row; tiles include padding
  int64_t unit_rows_, row_units_, panel_units_;
};

}  // namespace tts
