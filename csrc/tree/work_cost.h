// Cost model of tiles on a GPU, in nanoseconds of one multiprocessor. Only ratios matter: the figures are
// from the H100 data sheet, derated to what good kernels reach; an A100 has nearly the same proportions.
#pragma once

#include <algorithm>
#include <cstdint>

namespace tts {

// Shape of the layers that a plan serves, and of the device that runs them.
struct WorkShape {
  int32_t num_kv_heads;
  int32_t group;  // query heads per KV head
  int32_t head_dim;
  int32_t kv_bytes;    // per element of K or V
  int32_t max_height;  // of a tile: 16, 64 or 128
  int32_t num_sms;
};

class WorkCost {
 public:
  explicit WorkCost(const WorkShape& shape) : shape_(shape) {}

  // Cost of reading one token's K and V through the L2 cache and multiplying them with a tile of `height`
  // rows.
  double token(int32_t height) const {
    const double bytes = 2.0 * shape_.head_dim * shape_.kv_bytes;
    const double flop = 4.0 * shape_.head_dim * height;
    return std::max(bytes / kCacheBytes, flop / kFlop);
  }
  // Cost of writing and reading back one row of a partial result.
  double partial_row() const { return 2.0 * sizeof(float) * (shape_.head_dim + 1) / kCacheBytes; }

  static constexpr double kItem = 1000;  // start and end of a tile: chain of loads before the first product
  static constexpr double kMergeLaunch = 2500;

 private:
  static constexpr double kCacheBytes = 42;  // a nanosecond: 5.5 TB/s over 132 multiprocessors
  static constexpr double kFlop = 4500;      // a nanosecond: 600 TFLOP/s over 132

  WorkShape shape_;
};

}  // namespace tts
