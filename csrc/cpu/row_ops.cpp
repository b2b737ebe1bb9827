#include "cpu/row_ops.h"

#include <algorithm>

#include "common/error.h"
#include "cpu/runtime/isa.h"
#include "cpu/runtime/parallel.h"

namespace tts {
namespace {

// Floats below which waking threads costs more than the work.
constexpr int64_t kSmall = 1 << 15;
constexpr int64_t kBand = 16;  // rows that a thread takes at once

template <class Body>
void for_rows(int64_t rows, int64_t floats, int num_threads, const Body& body) {
  parallel_for(floats < kSmall ? 1 : num_threads, (rows + kBand - 1) / kBand, [&](int64_t band) {
    for (int64_t row = band * kBand; row < std::min(rows, (band + 1) * kBand); ++row) body(row);
  });
}

}  // namespace

void rms_norm(const float* x, int64_t x_stride, const float* weight, int64_t rows, int64_t n, float eps,
              float* out, int num_threads) {
  const RowKernels& kernels = cpu_isa().kernels.rows;
  for_rows(rows, rows * n, num_threads,
           [&](int64_t row) { kernels.rms_norm(x + row * x_stride, weight, n, eps, out + row * n); });
}

void rotate_qkv(const RotateTask& task, int num_threads) {
  const int d = task.head_dim, heads = task.num_q_heads + 2 * task.num_kv_heads;
  require(d >= 2 && d % 2 == 0 && d <= kMaxHeadDim, "head_dim: got ", d, ", expected an even number up to ",
          kMaxHeadDim);
  const RowKernels& kernels = cpu_isa().kernels.rows;
  const bool bfloat16 = task.dtype == DType::kBFloat16;
  for_rows(task.tokens, task.tokens * heads * d, num_threads, [&](int64_t token) {
    const float *cos = task.cos + token * d, *sin = task.sin + token * d;
    float normed[kMaxHeadDim], rotated[kMaxHeadDim];
    for (int h = 0; h < heads; ++h) {
      const float* x = task.qkv + token * task.stride + int64_t{h} * d;
      const bool is_q = h < task.num_q_heads, is_v = h >= task.num_q_heads + task.num_kv_heads;
      const int64_t row = is_q ? token * task.num_q_heads + h
                               : token * task.num_kv_heads + (h - task.num_q_heads) % task.num_kv_heads;
      void* out = is_q ? task.q : is_v ? task.v : task.k;
      if (!is_v) {
        if (const float* norm = is_q ? task.q_norm : task.k_norm; norm != nullptr) {
          kernels.rms_norm(x, norm, d, task.eps, normed);
          x = normed;
        }
        kernels.rotate(x, cos, sin, d, rotated);
        x = rotated;
      }
      if (bfloat16) {
        kernels.to_bfloat16(x, d, static_cast<uint16_t*>(out) + row * d);
      } else {
        std::copy_n(x, d, static_cast<float*>(out) + row * d);
      }
    }
  });
}

}  // namespace tts
