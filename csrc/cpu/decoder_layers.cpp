#include "cpu/decoder_layers.h"

#include <atomic>
#include <chrono>
#include <memory>

#include "common/error.h"
#include "cpu/check_plan.h"
#include "cpu/kv_ops.h"
#include "cpu/packed_linear.h"
#include "cpu/row_ops.h"

namespace tts {
namespace {

int64_t columns(const PackedMatrix& weight) { return weight.num_panels * kPanelOutputs; }

int64_t element_bytes(DType dtype) { return dtype == DType::kInt8 ? 1 : dtype == DType::kBFloat16 ? 2 : 4; }

template <class T>
T* shifted(T* data, int64_t bytes) {
  return data == nullptr ? nullptr : reinterpret_cast<T*>(reinterpret_cast<char*>(data) + bytes);
}

// Rows between the operators; each is written before it is read.
struct Scratch {
  Scratch(const DecoderShape& shape, const DecoderLayer& layer, int64_t tokens) {
    const int64_t q_width = int64_t{shape.num_q_heads} * shape.head_dim;
    const int64_t kv_width = int64_t{shape.num_kv_heads} * shape.head_dim;
    const int64_t sizes[] = {
        shape.hidden,      columns(layer.qkv),        q_width, kv_width, kv_width, q_width,
        shape.num_q_heads, columns(layer.gate_up) / 2};
    float** const parts[] = {&normed, &qkv, &q, &k, &v, &attended, &lse, &gated};
    int64_t total = 0;
    for (int64_t size : sizes) total += tokens * size;
    memory.reset(new float[static_cast<size_t>(total)]);
    float* next = memory.get();
    for (int i = 0; i < 8; ++i) {
      *parts[i] = next;
      next += tokens * sizes[i];
    }
  }

  std::unique_ptr<float[]> memory;
  float *normed, *qkv;            // [tokens, hidden], [tokens, columns of qkv]
  float *q, *k, *v;               // [tokens, heads, head_dim] of row_dtype
  float *attended, *lse, *gated;  // [tokens, heads, head_dim] of row_dtype; [tokens, heads]; [tokens, mlp]
};

std::atomic<int64_t> nanoseconds[4];  // by LayerPart

// Counts the time from one call to the next as that of a part.
class Stopwatch {
 public:
  void lap(LayerPart part) {
    const auto now = std::chrono::steady_clock::now();
    const auto passed = std::chrono::duration_cast<std::chrono::nanoseconds>(now - last_);
    nanoseconds[static_cast<int>(part)].fetch_add(passed.count(), std::memory_order_relaxed);
    last_ = now;
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

class Layers {
 public:
  Layers(const DecoderShape& shape, const DecoderLayer& first, const DecoderStep& step, float* x,
         int num_threads)
      : shape_(shape),
        step_(step),
        x_(x),
        threads_(num_threads),
        rows_(shape, first, step.plan.num_queries) {}

  void run(int64_t index, const DecoderLayer& layer) {
    const int64_t q_width = int64_t{shape_.num_q_heads} * shape_.head_dim;
    norm(layer.input_norm);
    multiply(layer.qkv, rows_.normed, DType::kFloat32, shape_.hidden, rows_.qkv, LinearEnd::kStore);
    attend(index, layer);
    multiply(layer.o, rows_.attended, step_.row_dtype, q_width, x_, LinearEnd::kAdd);
    norm(layer.mlp_norm);
    multiply(layer.gate_up, rows_.normed, DType::kFloat32, shape_.hidden, rows_.gated, LinearEnd::kSwiGLU);
    multiply(layer.down, rows_.gated, DType::kFloat32, columns(layer.gate_up) / 2, x_, LinearEnd::kAdd);
  }

 private:
  int64_t tokens() const { return step_.plan.num_queries; }

  void norm(const float* weight) {
    rms_norm(x_, shape_.hidden, weight, tokens(), shape_.hidden, shape_.eps, rows_.normed, threads_);
    watch_.lap(LayerPart::kNormsAndRotary);
  }

  void multiply(const PackedMatrix& weight, const void* x, DType x_dtype, int64_t inputs, float* out,
                LinearEnd end) {
    const int64_t out_columns = columns(weight) / (end == LinearEnd::kSwiGLU ? 2 : 1);
    packed_linear({x, x_dtype, tokens(), inputs, inputs, weight.panels, shape_.weight_dtype,
                   weight.num_panels, weight.bias, out, out_columns, end},
                  threads_);
    watch_.lap(LayerPart::kProducts);
  }

  void attend(int64_t index, const DecoderLayer& layer) {
    const int q_heads = shape_.num_q_heads, kv_heads = shape_.num_kv_heads, d = shape_.head_dim;
    rotate_qkv({rows_.qkv, tokens(), columns(layer.qkv), q_heads, kv_heads, d, step_.cos, step_.sin,
                layer.q_norm, layer.k_norm, shape_.eps, step_.row_dtype, rows_.q, rows_.k, rows_.v},
               threads_);
    watch_.lap(LayerPart::kNormsAndRotary);
    const KVView kv = pages(index);
    const TokenRows k{rows_.k, int64_t{kv_heads} * d, d, step_.row_dtype};
    const TokenRows v{rows_.v, int64_t{kv_heads} * d, d, step_.row_dtype};
    append_kv(kv, k, v, step_.slots, tokens(), summaries(index), threads_);
    watch_.lap(LayerPart::kAppend);
    TreeAttentionParams params{};
    params.kv = kv;
    params.plan = step_.plan;
    params.q = rows_.q;
    params.q_dtype = step_.row_dtype;
    params.q_token_stride = int64_t{q_heads} * d;
    params.q_head_stride = d;
    params.num_q_heads = q_heads;
    params.out = rows_.attended;
    params.lse = rows_.lse;
    params.scale = layer.scale;
    params.window = layer.window;
    tree_attention(params, threads_);
    watch_.lap(LayerPart::kAttention);
  }

  KVView pages(int64_t index) const {
    KVView kv = step_.kv;
    kv.k = shifted(kv.k, index * step_.k_layer_stride * element_bytes(kv.dtype));
    kv.v = shifted(kv.v, index * step_.v_layer_stride * element_bytes(kv.dtype));
    const int64_t scales = int64_t{kv.num_pages} * kv.num_kv_heads * 2;
    kv.scales = shifted(kv.scales, index * scales * int64_t{sizeof(float)});
    return kv;
  }

  SummaryView summaries(int64_t index) const {
    const KVView& kv = step_.kv;
    const int64_t elements = int64_t{kv.num_pages} * kv.num_kv_heads * step_.summaries.vectors * kv.head_dim;
    const int64_t bytes = kv.dtype == DType::kFloat32 ? 4 : 2;
    return {shifted(step_.summaries.data, index * elements * bytes), step_.summaries.vectors};
  }

  const DecoderShape& shape_;
  const DecoderStep& step_;
  float* const x_;
  const int threads_;
  const Scratch rows_;
  Stopwatch watch_;
};

}  // namespace

void decoder_layers(const DecoderShape& shape, const std::vector<DecoderLayer>& layers,
                    const DecoderStep& step, float* x, int num_threads) {
  check_view(step.kv);
  require(step.kv.num_kv_heads == shape.num_kv_heads && step.kv.head_dim == shape.head_dim, "pool: got ",
          step.kv.num_kv_heads, " KV heads of head_dim ", step.kv.head_dim, ", expected ", shape.num_kv_heads,
          " of ", shape.head_dim);
  require(step.row_dtype == step.kv.dtype || step.kv.dtype == DType::kInt8,
          "dtype: expected that of the pool, or any beside int8 pages");
  check_slots(step.kv, step.slots, step.plan.num_queries);
  check_plan(step.plan, step.kv.num_pages);
  if (step.plan.num_queries == 0 || layers.empty()) return;
  Layers run(shape, layers.front(), step, x, num_threads);
  for (size_t i = 0; i < layers.size(); ++i) run.run(static_cast<int64_t>(i), layers[i]);
}

std::array<double, 4> decoder_layers_seconds() {
  std::array<double, 4> seconds;
  for (size_t i = 0; i < 4; ++i) seconds[i] = static_cast<double>(nanoseconds[i].load()) * 1e-9;
  return seconds;
}

}  // namespace tts
