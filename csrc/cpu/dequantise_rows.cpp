#include "cpu/dequantise_rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/quantised_linear.h"
#include "cpu/runtime/bfloat16.h"
#include "cpu/runtime/parallel.h"

namespace tts {
namespace {

constexpr int kWordInputs = 4, kPlaneWords = kPlaneInputs / kWordInputs, kLowWords = kPlaneWords / 2;
constexpr int kWordBytes = kWordInputs * kPanelOutputs;

template <class T>
T read(const uint8_t* at) {
  T value;
  std::memcpy(&value, at, sizeof(value));
  return value;
}

double widen_float16(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const double size = exponent == 0    ? std::ldexp(fraction, -24)
                      : exponent == 31 ? (fraction == 0 ? HUGE_VAL : std::nan(""))
                                       : std::ldexp(fraction + 1024, exponent - 25);
  return bits >> 15 != 0 ? -size : size;
}

// One output of a block. All its numbers are exact in double.
struct BlockRow {
  const QuantForm& form;
  const QuantLayout& layout;
  const uint8_t* block;
  int lane;  // output within the panel

  // The number of a group, from those that begin at `begin`; with two-level scales, its factor is in the
  // `kind`-th 16 floats.
  double number(int begin, int group, int kind) const {
    const int i = group * kPanelOutputs + lane;
    switch (form.scales) {
      case QuantScales::kFloat16:
        return widen_float16(read<uint16_t>(block + begin + 2 * i));
      case QuantScales::kBFloat16:
        return widen_bfloat16(read<uint16_t>(block + begin + 2 * i));
      case QuantScales::kFloat32:
        return read<float>(block + begin + 4 * i);
      case QuantScales::kTwoLevel:
        break;
    }
    return double{read<float>(block + 4 * (kind * kPanelOutputs + lane))} * read<int8_t>(block + begin + i);
  }

  // The four inputs of a word, `Bits` bits in a byte each.
  template <int Bits>
  uint32_t integers(int word) const {
    const int place = word % kPlaneWords;
    const uint8_t* const planes =
        block + layout.planes_at + word / kPlaneWords * layout.plane_bytes + lane * kWordInputs;
    if constexpr (Bits == 8) return read<uint32_t>(planes + place * kWordBytes);
    const auto low = read<uint32_t>(planes + place % kLowWords * kWordBytes);
    uint32_t u = low >> (place < kLowWords ? 0 : 4) & 0x0f0f0f0f;
    if constexpr (Bits == 5 || Bits == 6) {
      constexpr int bits = Bits - 4, each = 8 / bits;  // words per byte
      const auto high = read<uint32_t>(planes + (kLowWords + place / each) * kWordBytes);
      u |= (high >> place % each * bits & 0x01010101 * ((1 << bits) - 1)) << 4;
    }
    return u;
  }

  // Writes input i of the block to out[order[i]], or to out[i] without an order.
  void write(int inputs, const int32_t* order, float* out) const {
    switch (form.bits) {
      case 4:
        return write_bits<4>(inputs, order, out);
      case 5:
        return write_bits<5>(inputs, order, out);
      case 6:
        return write_bits<6>(inputs, order, out);
      default:
        return write_bits<8>(inputs, order, out);
    }
  }

  template <int Bits>
  void write_bits(int inputs, const int32_t* order, float* out) const {
    for (int input = 0, group = 0; input < inputs; input += form.group, ++group) {
      const double scale = number(layout.scales_at, group, 0);
      const double min = form.has_min ? number(layout.mins_at, group, 1) : 0.0;
      int offset = form.offset;
      if (form.has_zeros) offset += read<int8_t>(block + layout.mins_at + group * kPanelOutputs + lane);
      uint8_t u[kXGroup];
      for (int i = 0; i < form.group; i += kWordInputs) {
        const uint32_t word = integers<Bits>((input + i) / kWordInputs);
        std::memcpy(u + i, &word, sizeof(word));
      }
      float weights[kXGroup];
      for (int i = 0; i < form.group; ++i) {
        const int number = form.has_table ? form.table[u[i]] : u[i];
        weights[i] = static_cast<float>(scale * (number - offset) + min);
      }
      if (order == nullptr) {
        std::copy_n(weights, form.group, out + input);
      } else {
        for (int i = 0; i < form.group; ++i) out[order[input + i]] = weights[i];
      }
    }
  }
};

}  // namespace

void dequantise_rows(const QuantPanels& panels, const int64_t* rows, int64_t count, int64_t inputs,
                     float* out, int num_threads) {
  const QuantLayout layout = layout_for(panels, inputs);
  parallel_for(count > 1 ? num_threads : 1, count, [&](int64_t i) {
    const uint8_t* block = panels.data + rows[i] / kPanelOutputs * panels.blocks * layout.bytes;
    for (int64_t input = 0; input < inputs; input += layout.inputs, block += layout.bytes) {
      const int size = static_cast<int>(std::min<int64_t>(layout.inputs, inputs - input));
      const BlockRow row{panels.form, layout, block, static_cast<int>(rows[i] % kPanelOutputs)};
      if (panels.order == nullptr) {
        row.write(size, nullptr, out + i * inputs + input);
      } else {
        row.write(size, panels.order + input, out + i * inputs);
      }
    }
  });
}

}  // namespace tts
