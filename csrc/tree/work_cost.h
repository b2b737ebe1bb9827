// What tiles cost on a GPU, in nanoseconds of one multiprocessor. Only ratios decide: the figures are an
// H100's by its data sheet, derated to what good kernels reach, and an A100's stand in nearly the same
// proportions.
#pragma once

#include <algorithm>
#include <cstdint>

namespace tts {

// The layers that a plan serves, and the device that runs them.
struct WorkShape {
  int32_t num_kv_heads;
  int32_t group;  // query heads of a KV head
  int32_t head_dim;
  int32_t kv_bytes;    // of one element of K or V
  int32_t max_height;  // of a tile: 16, 64 or 128
  int32_t num_sms;
};

class WorkCost {
 public:
  explicit WorkCost(const WorkShape& shape) : shape_(shape) {}

  // A token's K and V read through the L2 cache and multiplied with a tile of `height` rows.
  double token(int32_t height) const {
    const double bytes = 2.0 * shape_.head_dim * shape_.kv_bytes;
    const double flop = 4.0 * shape_.head_dim * height;
    return std::max(bytes / kCacheBytes, flop / kFlop);
  }
  // One row of a partial result, written and read again.
  double partial_row() const { return 2.0 * sizeof(float) * (shape_.head_dim + 1) / kCacheBytes; }

  static constexpr double kItem =
      1000;  // start and end of a tile: the chain of loads before the first product
  static constexpr double kMergeLaunch = 2500;

 private:
  static constexpr double kCacheBytes = 42;  // a nanosecond: 5.5 TB/s over 132 multiprocessors
  static constexpr double kFlop = 4500;      // a nanosecond: 600 TFLOP/s over 132

  WorkShape shape_;
};

}  // namespace tts
