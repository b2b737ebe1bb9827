#include "cpu/packed_linear.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "common/error.h"
#include "cpu/runtime/isa.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/scratch.h"

namespace tts {
namespace {

// Of 4 panels 16 KiB, half of an L1 cache. 32 and 128 were no faster on Cascade Lake.
constexpr int64_t kRunWords = 64;
constexpr int64_t kFirstRows = 96;  // at most; their sums, 24 KiB, and words of x stay in the L2 cache
// Of x, which a unit reads again for each block of panels: a part of an L2 cache.
constexpr int64_t kUnitRowBytes = 1 << 20;
constexpr int64_t kTileRows = 16, kTileWords = 16;  // of LinearX::kTiles
constexpr int64_t kSmall = 1 << 15;                 // elements whose conversion is not worth waking threads

int64_t rounded_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Rows as the kernels read them: where they lie, or converted.
struct RowWords {
  const uint32_t* data;
  int64_t stride;
};

// The words of one row, without gaps.
void convert_row(const PackedLinearTask& task, int64_t row, bool pairs, uint32_t* out) {
  const int64_t at = row * task.x_stride;
  const auto* halves = static_cast<const uint16_t*>(task.x) + at;
  if (!pairs) {
    for (int64_t i = 0; i < task.inputs; ++i) out[i] = uint32_t{halves[i]} << 16;
  } else if (task.x_dtype == DType::kFloat32) {
    cpu_isa().kernels.rows.to_bfloat16(static_cast<const float*>(task.x) + at, task.inputs,
                                       reinterpret_cast<uint16_t*>(out));
  } else {
    std::memcpy(out, halves, static_cast<size_t>(task.inputs) * sizeof(uint16_t));
  }
}

RowWords pack_rows(const PackedLinearTask& task, LinearX layout, Scratch& memory, int num_threads) {
  if (layout == LinearX::kFloats && task.x_dtype == DType::kFloat32) {
    return {static_cast<const uint32_t*>(task.x), task.x_stride};
  }
  if (layout == LinearX::kPairs && task.x_dtype == DType::kBFloat16 && task.x_stride % 2 == 0) {
    return {static_cast<const uint32_t*>(task.x), task.x_stride / 2};
  }
  const bool pairs = layout != LinearX::kFloats, tiles = layout == LinearX::kTiles;
  const int64_t words = pairs ? task.inputs / 2 : task.inputs;
  const int64_t width = tiles ? rounded_up(words, kTileWords) : words;
  uint32_t* const begin = memory.reserve(static_cast<size_t>(rounded_up(task.rows, kTileRows) * width));
  const int64_t bands = (task.rows + kTileRows - 1) / kTileRows;
  parallel_for(task.rows * task.inputs < kSmall ? 1 : num_threads, bands, [&](int64_t band) {
    uint32_t* out = begin + band * kTileRows * width;
    thread_local std::vector<uint32_t> whole;
    if (tiles) whole.assign(static_cast<size_t>(width), 0);
    const int64_t rows = std::min(kTileRows, task.rows - band * kTileRows);
    for (int64_t r = 0; r < rows; ++r) {
      uint32_t* const row = tiles ? whole.data() : out + r * width;
      convert_row(task, band * kTileRows + r, pairs, row);
      for (int64_t word = 0; tiles && word < width; word += kTileWords) {
        std::memcpy(out + word * kTileRows + r * kTileWords, row + word, kTileWords * sizeof(uint32_t));
      }
    }
  });
  return {begin, tiles ? kTileRows * width : width};
}

// Rows [begin, end) times the panels of a unit. The first rows take words in runs that stay in the L1 cache
// while all of them are multiplied; meanwhile the next run comes from memory. Two blocks wait for memory
// anyway, and later rows have the panels in the L2 cache: those take all words at once.
void multiply_rows(const LinearKernels& kernels, LinearBlock block, const PackedLinearTask& task,
                   int64_t words, bool first, int64_t begin, int64_t end, int panels) {
  // As even blocks as they come: a small one cannot hide the latency of its sums.
  const int64_t blocks = (end - begin + kernels.max_rows - 1) / kernels.max_rows;
  const int64_t run = first && blocks > 2 ? kRunWords : words;
  thread_local std::vector<float> sums;
  const int64_t width = int64_t{kPanelOutputs} * panels;
  if (run < words) sums.resize(std::max(sums.size(), static_cast<size_t>((end - begin) * width)));
  const int64_t steps = task.inputs / words;  // per word, and so words of x: 2 where x has floats, not pairs
  const LinearBlock all = block;
  for (int64_t word = 0; word < words; word += run) {
    block.panels = all.panels + word * kPanelOutputs;
    block.words = static_cast<int>(std::min(run, words - word));
    block.first = word == 0;
    block.last = word + run >= words;
    block.ahead = block.last ? nullptr : block.panels + run * kPanelOutputs;
    block.fetch_stride = static_cast<int>(blocks);
    for (int64_t i = 0; i < blocks; ++i) {
      const int64_t row = begin + i * (end - begin) / blocks,
                    row_end = begin + (i + 1) * (end - begin) / blocks;
      block.fetch_first = static_cast<int>(i);
      block.x = all.x + row * block.x_stride + word * (kernels.x == LinearX::kPairs ? 1 : steps);
      block.out = all.out + row * block.out_stride;
      block.sums = sums.data() + (row - begin) * width;
      kernels.multiply(block, static_cast<int>(row_end - row), panels);
    }
  }
}

}  // namespace

void packed_linear(const PackedLinearTask& task, int num_threads) {
  const bool bfloat16 = task.weight_dtype == DType::kBFloat16, swiglu = task.end == LinearEnd::kSwiGLU;
  require(task.inputs > 0 && (!bfloat16 || task.inputs % 2 == 0), "weight: got ", task.inputs,
          " inputs, expected at least 1, an even number in bfloat16");
  require(!swiglu || task.num_panels % 2 == 0, "weight: got ", task.num_panels,
          " panels, expected an even number for swiglu");
  const LinearKernels& kernels =
      bfloat16 ? cpu_isa().kernels.linear_bfloat16 : cpu_isa().kernels.linear_float32;
  thread_local Scratch memory;
  const RowWords x = pack_rows(task, kernels.x, memory, num_threads);
  const int64_t words = bfloat16 ? task.inputs / 2 : task.inputs;

  // A unit is a block of rows times a block of panels, whose weights are read from memory once, and then from
  // the cache. Blocks of panels are as many as threads can share evenly, and even: gate and up stay together.
  const int64_t x_words = kernels.x == LinearX::kFloats ? task.inputs : task.inputs / 2;
  const int64_t unit_rows =
      std::max(kUnitRowBytes / (4 * x_words) / kernels.max_rows, int64_t{1}) * kernels.max_rows;
  const int64_t row_units = (task.rows + unit_rows - 1) / unit_rows;
  const int64_t pairs = (task.num_panels + 1) / 2;
  const int64_t panel_units = std::min(
      rounded_up((task.num_panels + kernels.max_panels - 1) / kernels.max_panels, std::max(num_threads, 1)),
      pairs);
  parallel_for(num_threads, row_units * panel_units, [&](int64_t unit) {
    const int64_t begin = unit / panel_units * unit_rows, end = std::min(begin + unit_rows, task.rows);
    const int64_t u = unit % panel_units, first = 2 * (u * pairs / panel_units);
    const int64_t last = std::min(2 * ((u + 1) * pairs / panel_units), task.num_panels);
    const int panels = static_cast<int>(last - first);
    LinearBlock block{};
    block.x = x.data;
    block.x_stride = x.stride;
    block.panels = static_cast<const uint32_t*>(task.weight) + first * words * kPanelOutputs;
    block.panel_stride = words * kPanelOutputs;
    block.bias = task.bias == nullptr ? nullptr : task.bias + first * kPanelOutputs;
    block.out = task.out + first * kPanelOutputs / (swiglu ? 2 : 1);
    block.out_stride = task.out_stride;
    block.end = task.end;
    if (kernels.x == LinearX::kTiles) {
      block.words = static_cast<int>(words);
      block.x += begin / kTileRows * block.x_stride;
      block.out += begin * block.out_stride;
      kernels.multiply(block, static_cast<int>(end - begin), panels);
      return;
    }
    const int64_t first_end = std::min(end, begin + kFirstRows);
    multiply_rows(kernels, block, task, words, true, begin, first_end, panels);
    if (first_end < end) multiply_rows(kernels, block, task, words, false, first_end, end, panels);
  });
}

}  // namespace tts
