// Some rows of quantised weights as floats, as of an embedding table.
#pragma once

#include <cstdint>

#include "cpu/matrix.h"

namespace tts {

// out [count, inputs] = the outputs `rows` of a weight, its inputs in their own order, each number rounded
// once. Rows are not checked. Throws ArgumentError where the panels do not fit.
void dequantise_rows(const QuantPanels& panels, const int64_t* rows, int64_t count, int64_t inputs,
                     float* out, int num_threads);

}  // namespace tts
