// Unpacks the quantised weights of a chunk of inputs to bytes and floats, in the L1 cache.
#pragma once

#include "cpu/kernels/vec_math-inl.h"

constexpr int kVecBytes = 4 * Vec::kLanes;
constexpr int kWordBytes = 4 * kPanelOutputs;  // four inputs of a panel
constexpr int kLine = 64;                      // bytes per cache line

// A panel's chunk: bytes [words][16 outputs][4 inputs], in runs of 64 inputs, and per group the scales and
// minima of the 16 outputs.
struct PanelChunk {
  alignas(64) uint8_t bytes[kChunkInputs / 4 * kWordBytes];
  alignas(64) float scales[kChunkInputs / 16][kPanelOutputs];
  alignas(64) float mins[kChunkInputs / 16][kPanelOutputs];
  const uint8_t* words;  // `bytes`, or the weights in place if they are bytes
  int64_t plane_stride;  // bytes between runs of 64 inputs
  const uint8_t* ahead;  // lines to prefetch, kAheadBytes after this chunk
  int lines;
};

// Prefetch distance: what a core reads at 16 GB/s during the memory latency, and less than a page, within
// which the hardware prefetches too. Of 1.1 to 4.5 KiB, 2.3 to 3.4 are best on a Xeon with AMX.
constexpr int kAheadBytes = 2816;

// Step w of 8 prefetches every eighth of `lines` lines.
inline void fetch_lines(const uint8_t* ahead, int w, int lines) {
  if (w < lines) __builtin_prefetch(ahead + w * kLine, 0, 2);
  if (w + 8 < lines) __builtin_prefetch(ahead + (w + 8) * kLine, 0, 2);
}

// The high bits of word w of 16, in bits 4 and 5 of each byte.
template <int kHighBits>
inline Ints::I high_bits(const uint8_t* planes, int w) {
  constexpr int kEach = 8 / kHighBits;  // words per byte
  const int up = 4 - kHighBits * (w % kEach);
  const Ints::I bits = Ints::load(planes + w / kEach * kWordBytes);
  const Ints::I mask = Ints::set1(kHighBits == 1 ? 0x10101010 : 0x30303030);
  return Ints::both(up >= 0 ? Ints::shifted_left(bits, up) : Ints::shifted_right(bits, -up), mask);
}

// Upper bounds on the bytes of a form. Levels that ignore the bound use the largest.
constexpr int kMostOfBits[] = {15, 31, 63, 255};
inline int most_of(const QuantForm& form) {
  if (!Ints::kBySize || form.bits == 8) return 255;
  if (!form.has_table) return kMostOfBits[form.bits - 4];
  int most = 0;
  for (const uint8_t entry : form.table) most = entry > most ? entry : most;
  return most <= 31 ? 31 : 255;
}

// Decodes the bits of 64 inputs to bytes up to kMost.
template <int kBits, bool kTable, int kMostByte>
struct PlaneWords {
  static constexpr int kMost = Ints::kBySize ? kMostByte : 255;
  Ints::I low, table;

  explicit PlaneWords(const QuantForm& form)
      : low(Ints::set1(0x0f0f0f0f)), table(Ints::load_table(form.table)) {}

  // Loads words w and w + 8, 0 <= w < 8: Vec::kLanes outputs of each.
  inline void load(const uint8_t* planes, int w, Ints::I& first, Ints::I& second) const {
    const Ints::I u = Ints::load(planes + w * kWordBytes);
    first = Ints::both(u, low);
    second = Ints::both(Ints::shifted_right(u, 4), low);
    if constexpr (kBits > 4) {
      const uint8_t* const high = planes + 8 * kWordBytes;
      first = Ints::either(first, high_bits<kBits - 4>(high, w));
      second = Ints::either(second, high_bits<kBits - 4>(high, w + 8));
    }
    if constexpr (kTable) {
      first = Ints::look_up(table, first);
      second = Ints::look_up(table, second);
    }
  }
};

// Calls body with the form's PlaneWords, for 4, 5 or 6 bits.
template <class Body>
inline void with_plane_words(const QuantForm& form, const Body& body) {
  if (form.has_table && most_of(form) == 31) return body(PlaneWords<4, true, 31>(form));
  if (form.has_table) return body(PlaneWords<4, true, 255>(form));
  if (form.bits == 4) return body(PlaneWords<4, false, 15>(form));
  if (form.bits == 5) return body(PlaneWords<5, false, 31>(form));
  body(PlaneWords<6, false, 63>(form));
}

// Unpacks 64 inputs.
template <class Words>
inline void unpack_planes(const Words& words, const uint8_t* planes, uint8_t* out) {
  for (int at = 0; at < kWordBytes; at += kVecBytes) {
#pragma GCC unroll 8
    for (int w = 0; w < 8; ++w) {
      Ints::I first, second;
      words.load(planes + at, w, first, second);
      Ints::store(out + at + w * kWordBytes, first);
      Ints::store(out + at + (w + 8) * kWordBytes, second);
    }
  }
}

// Unpacks the 16 outputs' numbers of `groups` groups, times `factors` for two-level scales.
inline void unpack_scales(const uint8_t* scales, int groups, QuantScales kind, const float* factors,
                          float (*out)[kPanelOutputs]) {
  for (int lane = 0; lane < kPanelOutputs; lane += Vec::kLanes) {
    const F factor = kind == QuantScales::kTwoLevel ? Vec::load(factors + lane) : Vec::set1(1.0f);
    for (int g = 0; g < groups; ++g) {
      const int at = g * kPanelOutputs + lane;
      F scale;
      if (kind == QuantScales::kTwoLevel) {
        scale = Vec::mul(factor, Vec::load_int8(reinterpret_cast<const int8_t*>(scales) + at));
      } else if (kind == QuantScales::kFloat16) {
        scale = Ints::widen_float16(scales + 2 * at);
      } else if (kind == QuantScales::kBFloat16) {
        scale = Ints::widen_bfloat16(scales + 2 * at);
      } else {
        scale = Vec::load(reinterpret_cast<const float*>(scales) + at);
      }
      Vec::store(out[g] + lane, scale);
    }
  }
}

// Converts zero points to minima, -scale * zero: exact, except for scales of more than 16 bits.
inline void unpack_zeros(const uint8_t* zeros, int groups, const float (*scales)[kPanelOutputs],
                         float (*out)[kPanelOutputs]) {
  for (int g = 0; g < groups; ++g) {
    for (int lane = 0; lane < kPanelOutputs; lane += Vec::kLanes) {
      const auto* const at = reinterpret_cast<const int8_t*>(zeros) + g * kPanelOutputs + lane;
      const F shift = Vec::mul(Vec::load(scales[g] + lane), Vec::load_int8(at));
      Vec::store(out[g] + lane, Vec::sub(Vec::set1(0.0f), shift));
    }
  }
}

// Unpacks scales and minima of up to 256 inputs of a panel, from the block at `at` on. `words` and
// `plane_stride` then refer to the planes, or bytes, in place.
inline void begin_chunk(const uint8_t* at, int inputs, const QuantForm& form, const QuantLayout& layout,
                        PanelChunk& out) {
  out.words = at + layout.planes_at;
  out.plane_stride = layout.inputs == kPlaneInputs ? layout.bytes : layout.plane_bytes;
  const int groups = layout.inputs / form.group;
  const int64_t chunk_bytes = kChunkInputs / layout.inputs * layout.bytes;
  out.ahead = at + kAheadBytes;
  out.lines = static_cast<int>((chunk_bytes + kLine - 1) / kLine);
  for (int input = 0, group = 0; input < inputs;
       input += layout.inputs, group += groups, at += layout.bytes) {
    const auto* const factors = reinterpret_cast<const float*>(at);
    unpack_scales(at + layout.scales_at, groups, form.scales, factors, out.scales + group);
    if (form.has_min) {
      unpack_scales(at + layout.mins_at, groups, form.scales, factors + kPanelOutputs, out.mins + group);
    } else if (form.has_zeros) {
      unpack_zeros(at + layout.mins_at, groups, out.scales + group, out.mins + group);
    }
  }
}

// Unpacks the weights to bytes too.
inline void unpack_chunk(int inputs, const QuantForm& form, PanelChunk& chunk) {
  if (form.bits == 8) return;
  with_plane_words(form, [&](const auto& words) {
    for (int i = 0; i < inputs / kPlaneInputs; ++i) {
      unpack_planes(words, chunk.words + i * chunk.plane_stride,
                    chunk.bytes + i * kPlaneInputs / 4 * kWordBytes);
    }
  });
  chunk.words = chunk.bytes;
  chunk.plane_stride = kPlaneInputs / 4 * kWordBytes;
}
