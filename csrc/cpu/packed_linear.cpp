#include "cpu/packed_linear.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "common/error.h"
#include "cpu/runtime/isa.h"

namespace tts {
namespace {

// 16 KiB for 4 panels, half of an L1 cache. 32 and 128 were no faster on Cascade Lake.
constexpr int64_t kRunWords = 64;
constexpr int64_t kFirstRows = 96;  // maximum; their sums, 24 KiB, and words of x stay in the L2 cache
// Bytes of x, which a unit rereads for each block of panels: part of an L2 cache.
constexpr int64_t kUnitRowBytes = 1 << 20;
constexpr int64_t kTileRows = 16, kTileWords = 16;  // of LinearX::kTiles

int64_t rounded_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Rows [begin, end) times the panels of a unit. The first rows take words in runs, which stay in the L1 cache
// while all these rows are multiplied and the next run comes from memory. Up to two blocks wait for memory
// anyway, and later rows find the panels in the L2 cache: both take all words at once.
void multiply_rows(const LinearKernels& kernels, LinearBlock block, int64_t inputs, int64_t words, bool first,
                   int64_t begin, int64_t end, int panels) {
  // Blocks as even as possible: a small one cannot hide the latency of its sums.
  const int64_t blocks = (end - begin + kernels.max_rows - 1) / kernels.max_rows;
  const int64_t run = first && blocks > 2 ? kRunWords : words;
  thread_local std::vector<float> sums;
  const int64_t width = int64_t{kPanelOutputs} * panels;
  if (run < words) sums.resize(std::max(sums.size(), static_cast<size_t>((end - begin) * width)));
  const int64_t steps = inputs / words;  // steps per word, hence words of x: 2 if x has floats, not pairs
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

PackedLinear::PackedLinear(const LinearTask& task, const FloatPanels& panels, int num_threads)
    : task_(task), panels_(panels) {
  const bool bfloat16 = panels.dtype == DType::kBFloat16;
  const int64_t inputs = task.x.inputs, num_panels = task.weight.num_panels;
  require(inputs > 0 && (!bfloat16 || inputs % 2 == 0), "weight: got ", inputs,
          " inputs, expected at least 1, an even number in bfloat16");
  kernels_ = bfloat16 ? &cpu_isa().kernels.linear_bfloat16 : &cpu_isa().kernels.linear_float32;
  words_ = bfloat16 ? inputs / 2 : inputs;
  x_words_ = kernels_->x == LinearX::kFloats ? inputs : inputs / 2;

  // A unit is a block of rows times a block of panels; its weights are read from memory once, then from the
  // cache. The number of panel blocks lets threads share them evenly. Blocks have an even number of panels,
  // so gate and up stay together.
  unit_rows_ = std::max(kUnitRowBytes / (4 * x_words_) / kernels_->max_rows, int64_t{1}) * kernels_->max_rows;
  row_units_ = (task.x.count + unit_rows_ - 1) / unit_rows_;
  panel_units_ = std::min(
      rounded_up((num_panels + kernels_->max_panels - 1) / kernels_->max_panels, std::max(num_threads, 1)),
      (num_panels + 1) / 2);
  if (kernels_->x == LinearX::kTiles) x_words_ = rounded_up(x_words_, kTileWords);
}

bool PackedLinear::reads_rows_as_they_lie() const {
  if (kernels_->x == LinearX::kFloats) return task_.x.dtype == DType::kFloat32;
  return kernels_->x == LinearX::kPairs && task_.x.dtype == DType::kBFloat16 && task_.x.stride % 2 == 0;
}

int64_t PackedLinear::row_words() const {
  return reads_rows_as_they_lie() ? 0 : rounded_up(task_.x.count, kTileRows) * x_words_;
}

int64_t PackedLinear::bands() const {
  return reads_rows_as_they_lie() ? 0 : (task_.x.count + kTileRows - 1) / kTileRows;
}

// Writes the words of one row, without gaps.
void PackedLinear::convert_row(int64_t row, uint32_t* out) const {
  const LinearRows& x = task_.x;
  const int64_t at = row * x.stride;
  const auto* halves = static_cast<const uint16_t*>(x.data) + at;
  if (kernels_->x == LinearX::kFloats) {
    for (int64_t i = 0; i < x.inputs; ++i) out[i] = uint32_t{halves[i]} << 16;
  } else if (x.dtype == DType::kFloat32) {
    cpu_isa().kernels.rows.to_bfloat16(static_cast<const float*>(x.data) + at, x.inputs,
                                       reinterpret_cast<uint16_t*>(out));
  } else {
    std::memcpy(out, halves, static_cast<size_t>(x.inputs) * sizeof(uint16_t));
  }
}

void PackedLinear::convert(int64_t band, uint32_t* rows) const {
  const bool tiles = kernels_->x == LinearX::kTiles;
  uint32_t* const out = rows + band * kTileRows * x_words_;
  thread_local std::vector<uint32_t> whole;
  if (tiles) whole.assign(static_cast<size_t>(x_words_), 0);
  const int64_t count = std::min(kTileRows, task_.x.count - band * kTileRows);
  for (int64_t r = 0; r < count; ++r) {
    uint32_t* const row = tiles ? whole.data() : out + r * x_words_;
    convert_row(band * kTileRows + r, row);
    for (int64_t word = 0; tiles && word < x_words_; word += kTileWords) {
      std::memcpy(out + word * kTileRows + r * kTileWords, row + word, kTileWords * sizeof(uint32_t));
    }
  }
}

void PackedLinear::multiply(int64_t unit, const uint32_t* rows) const {
  const bool as_they_lie = reads_rows_as_they_lie(), swiglu = task_.end == LinearEnd::kSwiGLU;
  const int64_t num_panels = task_.weight.num_panels, pairs = (num_panels + 1) / 2;
  const int64_t begin = unit / panel_units_ * unit_rows_, end = std::min(begin + unit_rows_, task_.x.count);
  const int64_t u = unit % panel_units_, first = 2 * (u * pairs / panel_units_);
  const int64_t last = std::min(2 * ((u + 1) * pairs / panel_units_), num_panels);
  const int panels = static_cast<int>(last - first);
  LinearBlock block{};
  block.x = as_they_lie ? static_cast<const uint32_t*>(task_.x.data) : rows;
  block.x_stride = !as_they_lie                      ? x_words_
                   : kernels_->x == LinearX::kFloats ? task_.x.stride
                                                     : task_.x.stride / 2;
  block.panels = static_cast<const uint32_t*>(panels_.data) + first * words_ * kPanelOutputs;
  block.panel_stride = words_ * kPanelOutputs;
  block.bias = task_.weight.bias == nullptr ? nullptr : task_.weight.bias + first * kPanelOutputs;
  block.out = task_.out + first * kPanelOutputs / (swiglu ? 2 : 1);
  block.out_stride = task_.out_stride;
  block.end = task_.end;
  if (kernels_->x == LinearX::kTiles) {
    block.words = static_cast<int>(words_);
    block.x_stride *= kTileRows;
    block.x += begin / kTileRows * block.x_stride;
    block.out += begin * block.out_stride;
    kernels_->multiply(block, static_cast<int>(end - begin), panels);
    return;
  }
  const int64_t first_end = std::min(end, begin + kFirstRows);
  multiply_rows(*kernels_, block, task_.x.inputs, words_, true, begin, first_end, panels);
  if (first_end < end) multiply_rows(*kernels_, block, task_.x.inputs, words_, false, first_end, end, panels);
}

}  // namespace tts
