#include "cpu/row_ops.h"

#include <algorithm>

#include "common/error.h"
#include "cpu/runtime/isa.h"
#include "cpu/runtime/parallel.h"

namespace tts {
namespace {

// Below this many floats, waking threads costs more than the work.
constexpr int64_t kSmall = 1 << 15;
constexpr int64_t kBand = 16;  // rows that a thread takes at a time

template <class Body>
void for_rows(int64_t rows, int64_t floats, int num_threads, const Body& body) {
  parallel_for(floats < kSmall ? 1 : num_threads, (rows + kBand - 1) / kBand, [&](int64_t band) {
    for (int64_t row = band * kBand; row < std::min(rows, (band + 1) * kBand); ++row) body(row);
  });
}

void norm_row(const Norm& norm, const float* x, int64_t n, float eps, float* out) {
  const RowKernels& kernels = cpu_isa().kernels.rows;
  if (norm.centred) {
    kernels.layer_norm(x, norm.weight, norm.weight + n, n, eps, out);
  } else {
    kernels.rms_norm(x, norm.weight, n, eps, out);
  }
}

}  // namespace

void norm_rows(const NormTask& task, int num_threads) {
  for_rows(task.rows, task.rows * task.n, num_threads, [&](int64_t row) {
    norm_row(task.norm, task.x + row * task.x_stride, task.n, task.eps, task.out + row * task.out_stride);
  });
}

void add_rows(float* x, const Norm& norm, float eps, float factor, int64_t rows, int64_t n, float* out,
              int num_threads) {
  const RowKernels& kernels = cpu_isa().kernels.rows;
  for_rows(rows, rows * n, num_threads, [&](int64_t row) {
    float* const added = x + row * n;
    if (norm.weight != nullptr) norm_row(norm, added, n, eps, added);
    kernels.add_scaled(added, factor, n, out + row * n);
  });
}

void activate_rows(Activation activation, bool gated, float* x, int64_t stride, int64_t rows, int64_t n,
                   int num_threads) {
  const RowKernels& kernels = cpu_isa().kernels.rows;
  for_rows(rows, rows * n, num_threads, [&](int64_t row) {
    float* const gate = x + row * stride;
    kernels.activate(activation, gate, gated ? gate + n : nullptr, n, gate);
  });
}

void clamped_swiglu_rows(float alpha, float limit, float* x, int64_t stride, int64_t rows, int64_t n,
                         int num_threads) {
  const RowKernels& kernels = cpu_isa().kernels.rows;
  for_rows(rows, rows * n, num_threads, [&](int64_t row) {
    float* const gate = x + row * stride;
    kernels.clamped_swiglu(gate, gate + n, alpha, limit, n, gate);
  });
}

void scale_and_cap_rows(float factor, float cap, float* x, int64_t stride, int64_t rows, int64_t n,
                        int num_threads) {
  const RowKernels& kernels = cpu_isa().kernels.rows;
  for_rows(rows, rows * n, num_threads,
           [&](int64_t row) { kernels.scale_and_cap(factor, cap, n, x + row * stride); });
}

void rotate_qkv(const RotateTask& task, int num_threads) {
  const int d = task.head_dim, heads = task.num_q_heads + 2 * task.num_kv_heads;
  require(d >= 2 && d % 2 == 0 && d <= kMaxHeadDim, "head_dim: got ", d, ", expected an even number up to ",
          kMaxHeadDim);
  require(task.rotary_dim >= 0 && task.rotary_dim % 2 == 0 && task.rotary_dim <= d, "rotary_dim: got ",
          task.rotary_dim, ", expected an even number up to head_dim");
  const RowKernels& kernels = cpu_isa().kernels.rows;
  const bool bfloat16 = task.dtype == DType::kBFloat16;
  for_rows(task.tokens, task.tokens * heads * d, num_threads, [&](int64_t token) {
    const int turned = task.rotary_dim;
    const float *cos = task.cos + token * turned, *sin = task.sin + token * turned;
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
        if (turned > 0) {
          (task.pairs ? kernels.rotate_pairs : kernels.rotate)(x, cos, sin, turned, rotated);
          std::copy(x + turned, x + d, rotated + turned);
          x = rotated;
        }
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
