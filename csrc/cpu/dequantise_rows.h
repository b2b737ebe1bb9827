// Reads rows of quantised weights as floats, as for an embedding table.
#pragma once

#include <cstdint>

#include "cpu/matrix.h"

namespace tts {

// out [count, inputs] = outputs `rows` of a weight, with inputs in the weight's own order and each number
// rounded once. Does not check `rows`. Throws ArgumentError if the panels do not fit.
void dequantise_rows(const QuantPanels& panels, const int64_t* rows, int64_t count, int64_t inputs,
                     float* out, int num_threads);

}  // namespace tts
