// Tests the shim's instructions, with which the CUDA kernels run on the CPU, against the fragments of the PTX
// ISA, a plain product and every 16-bit number.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"
#include "tests/check.h"
#include "tests/cuda_shim/float16.h"
#include "tests/cuda_shim/random.h"

namespace tts::cuda {
namespace {

struct Matrices {
  uint16_t a[16][16], b[16][8], b_columns[8][16];
  float c[16][8];
};

template <DType kType>
void multiply_by_fragments(Matrices* m) {
  const int lane = static_cast<int>(threadIdx.x), group = lane >> 2, in_group = lane % 4;
  auto* shared = reinterpret_cast<uint16_t*>(shared_memory());  // a, b, b transposed
  for (int i = lane; i < 256; i += 32) shared[i] = m->a[i / 16][i % 16];
  for (int i = lane; i < 128; i += 32) {
    shared[256 + i] = m->b[i / 8][i % 8];
    shared[384 + i] = m->b_columns[i / 16][i % 16];
  }
  __syncthreads();
  // By the PTX ISA: a[i] is in row group (+ 8 for odd i), column 2 in_group + (i's low bit) (+ 8 from a2 on).
  uint32_t a[4], b[2], loaded[4];
  for (int i = 0; i < 4; ++i) {
    const uint16_t* pair = &m->a[group + i % 2 * 8][in_group * 2 + i / 2 * 8];
    a[i] = pair[0] | uint32_t{pair[1]} << 16;
  }
  for (int i = 0; i < 2; ++i) {
    b[i] = m->b[in_group * 2 + 8 * i][group] | uint32_t{m->b[in_group * 2 + 8 * i + 1][group]} << 16;
  }
  ldmatrix(loaded, shared + lane % 16 * 16 + lane / 16 * 8);
  CHECK(std::memcmp(loaded, a, sizeof(a)) == 0);
  ldmatrix(loaded, shared + 384 + lane % 8 * 16 + lane / 8 % 2 * 8);
  CHECK(std::memcmp(loaded, b, sizeof(b)) == 0);
  ldmatrix_trans(loaded, shared + 256 + lane % 16 * 8);
  CHECK(std::memcmp(loaded, b, sizeof(b)) == 0);
  float c[4] = {1, 2, 3, 4};
  mma<kType>(c, a, b[0], b[1]);
  for (int i = 0; i < 4; ++i)
    m->c[group + i / 2 * 8][in_group * 2 + i % 2] = c[i] - static_cast<float>(i + 1);
}

template <DType kType>
void test_instructions(Random& random) {
  Matrices m;
  for (auto& row : m.a)
    std::generate(std::begin(row), std::end(row), [&] { return random_value(random, kType); });
  for (int k = 0; k < 16; ++k) {
    for (int n = 0; n < 8; ++n) m.b[k][n] = m.b_columns[n][k] = random_value(random, kType);
  }
  launch_shared<multiply_by_fragments<kType>>("", 1, 32, 1024, nullptr, &m);
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 8; ++j) {
      double sum = 0;
      for (int k = 0; k < 16; ++k) sum += shim::to_float(kType, m.a[i][k]) * shim::to_float(kType, m.b[k][j]);
      CHECK(std::fabs(sum - m.c[i][j]) < 1e-5);
    }
  }
}

// Every 16-bit number that is not NaN survives a round trip, and a value half-way between two rounds to the
// even one.
void test_float16() {
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    for (int bits = 0; bits < 0x10000; ++bits) {
      const auto x = static_cast<uint16_t>(bits);
      const float value = shim::to_float(dtype, x);
      if (std::isnan(value)) continue;
      CHECK(shim::from_float(dtype, value) == x);
      const float next = shim::to_float(dtype, static_cast<uint16_t>(x + 1));
      if (std::isfinite(value) && std::isfinite(next) && x != 0x7fff) {
        CHECK(shim::from_float(dtype, value / 2 + next / 2) == (x % 2 ? x + 1 : x));
      }
    }
  }
}

}  // namespace
}  // namespace tts::cuda

int main() {
  using namespace tts::cuda;
  Random random(1);
  test_float16();
  test_instructions<DType::kFloat16>(random);
  test_instructions<DType::kBFloat16>(random);
  return tts::test::failures() == 0 ? 0 : 1;
}
