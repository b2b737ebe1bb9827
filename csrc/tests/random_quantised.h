// Quantised weights of any form: random bytes, except for scales.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

#include "cpu/quantised_linear.h"
#include "tests/random.h"

namespace tts::test {

inline QuantForm random_form(Random& random) {
  QuantForm form{};
  const int bits[] = {4, 5, 6, 8};
  form.bits = bits[draw(random, 0, 3)];
  form.group = 16 * draw(random, 1, 2);
  form.scales = static_cast<QuantScales>(draw(random, 0, 3));
  form.has_min = form.bits < 8 && draw(random, 0, 1) == 1;
  form.has_zeros = !form.has_min && form.scales != QuantScales::kTwoLevel && draw(random, 0, 1) == 1;
  form.has_table = form.bits == 4 && draw(random, 0, 1) == 1;
  for (uint8_t& entry : form.table) entry = static_cast<uint8_t>(draw(random, 0, 120));
  form.offset = form.has_min ? 0 : form.bits == 8 ? 128 : draw(random, 0, 64);
  return form;
}

inline int64_t blocks_of(const QuantForm& form, int64_t inputs) {
  const int64_t each = quant_layout(form).inputs;
  return (inputs + each - 1) / each;
}

// Random blocks, [panels][blocks].
inline std::vector<uint8_t> random_panels(Random& random, const QuantForm& form, int64_t panels,
                                          int64_t inputs) {
  const QuantLayout layout = quant_layout(form);
  const int64_t blocks = panels * blocks_of(form, inputs);
  std::vector<uint8_t> weight(static_cast<size_t>(blocks * layout.bytes));
  for (uint8_t& byte : weight) byte = static_cast<uint8_t>(draw(random, 0, 255));
  for (int64_t block = 0; block < blocks; ++block) {
    uint8_t* const at = weight.data() + block * layout.bytes;
    for (int i = 0; i < layout.scales_at / 4; ++i) {
      const float factor = static_cast<float>(draw(random, 1, 100)) * 1e-6f;
      std::memcpy(at + 4 * i, &factor, sizeof(factor));
    }
    const int scales_end = form.has_min ? layout.planes_at : layout.mins_at;
    for (int i = layout.scales_at / 4; form.scales == QuantScales::kFloat32 && i < scales_end / 4; ++i) {
      const float scale = static_cast<float>(draw(random, -1000, 1000)) * 3e-6f;
      std::memcpy(at + 4 * i, &scale, sizeof(scale));
    }
    const bool halves = form.scales == QuantScales::kFloat16 || form.scales == QuantScales::kBFloat16;
    for (int i = layout.scales_at / 2; halves && i < scales_end / 2; ++i) {
      // About 2^-9; in float16, also subnormal numbers.
      const int base = form.scales == QuantScales::kBFloat16 ? 0x3a80 : draw(random, 0, 1) == 0 ? 0 : 0x1800;
      const auto half = static_cast<uint16_t>(base + draw(random, 0, 127) + 0x8000 * draw(random, 0, 1));
      std::memcpy(at + 2 * i, &half, sizeof(half));
    }
  }
  return weight;
}

// A random order of the inputs of panels; empty half of the time, for weights without an order.
inline std::vector<int32_t> random_order(Random& random, int64_t inputs) {
  if (draw(random, 0, 1) == 0) return {};
  std::vector<int32_t> order(static_cast<size_t>(inputs));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  return order;
}

// The order as kernels take it.
inline const int32_t* order_at(const std::vector<int32_t>& order) {
  return order.empty() ? nullptr : order.data();
}

}  // namespace tts::test
