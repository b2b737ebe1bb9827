#include "cpu/decoder_layers.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>

#include "common/error.h"
#include "cpu/check_plan.h"
#include "cpu/kv_ops.h"
#include "cpu/packed_linear.h"
#include "cpu/row_ops.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/scratch.h"

namespace tts {
namespace {

int64_t columns(const PackedMatrix& weight) { return weight.num_panels * kPanelOutputs; }

// Rows between the operators, as long as all tokens; each is written before it is read.
struct AllRows {
  AllRows(const DecoderShape& shape, int64_t tokens) {
    const int64_t q_width = int64_t{shape.num_q_heads} * shape.head_dim;
    const int64_t kv_width = int64_t{shape.num_kv_heads} * shape.head_dim;
    memory.reset(new float[static_cast<size_t>(tokens * (2 * (q_width + kv_width) + shape.num_q_heads))]);
    q = memory.get();
    k = q + tokens * q_width;
    v = k + tokens * kv_width;
    attended = v + tokens * kv_width;
    lse = attended + tokens * q_width;
  }

  std::unique_ptr<float[]> memory;
  float *q, *k, *v, *attended;  // [tokens, heads, head_dim] of row_dtype
  float* lse;                   // [tokens, heads]
};

// Tokens that go through the operators between two attentions together. So few, and on one thread, that what
// one operator writes the next one finds in the L2 cache; so many that weights are not read too often: at
// most 128 or 512 made a prompt of 2,048 tokens 3 and 1 % slower.
constexpr int64_t kMinChunk = 128, kMaxChunk = 256;

struct Chunk {
  int64_t begin, tokens;
  int threads;
  float* normed;  // [tokens, hidden]
  float* wide;    // [tokens, columns of qkv or of gate_up / 2]
};

std::atomic<int64_t> nanoseconds[4];  // by LayerPart

// Counts the time from one call to the next as that of a part; `threads` do so at once.
class Stopwatch {
 public:
  explicit Stopwatch(int threads = 1) : threads_(threads) {}

  void lap(LayerPart part) {
    const auto now = std::chrono::steady_clock::now();
    const auto passed = std::chrono::duration_cast<std::chrono::nanoseconds>(now - last_);
    nanoseconds[static_cast<int>(part)].fetch_add(passed.count() / threads_, std::memory_order_relaxed);
    last_ = now;
  }

 private:
  const int threads_;
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

class Layers {
 public:
  Layers(const DecoderShape& shape, const DecoderStep& step, float* x, int num_threads)
      : shape_(shape),
        step_(step),
        x_(x),
        threads_(std::max(num_threads, 1)),
        rows_(shape, step.plan.num_queries) {}

  void run(int64_t index, const DecoderLayer& layer) {
    for_each_chunk(columns(layer.qkv), [&](const Chunk& chunk) { before_attention(layer, chunk); });
    attend(index, layer);
    for_each_chunk(columns(layer.gate_up) / 2, [&](const Chunk& chunk) { after_attention(layer, chunk); });
  }

 private:
  int64_t tokens() const { return step_.plan.num_queries; }

  // Chunks of even length on a thread each, or, where they would be too short, one chunk on all threads.
  template <class Body>
  void for_each_chunk(int64_t width, const Body& body) const {
    const int64_t turns = (tokens() + kMaxChunk * threads_ - 1) / (kMaxChunk * threads_);
    const int64_t chunks = tokens() < kMinChunk * threads_ ? 1 : turns * threads_;
    parallel_for(threads_, chunks, [&](int64_t i) {
      const int64_t begin = i * tokens() / chunks, count = (i + 1) * tokens() / chunks - begin;
      thread_local Scratch memory;
      auto* normed =
          reinterpret_cast<float*>(memory.reserve(static_cast<size_t>(count * (shape_.hidden + width))));
      body({begin, count, chunks == 1 ? threads_ : 1, normed, normed + count * shape_.hidden});
    });
  }

  void before_attention(const DecoderLayer& layer, const Chunk& chunk) const {
    Stopwatch watch(chunk.threads == 1 ? threads_ : 1);
    const int q_heads = shape_.num_q_heads, kv_heads = shape_.num_kv_heads, d = shape_.head_dim;
    norm(layer.input_norm, chunk, watch);
    multiply(layer.qkv, chunk.normed, DType::kFloat32, shape_.hidden, chunk, chunk.wide, LinearEnd::kStore,
             watch);
    const int64_t kv_row = chunk.begin * kv_heads * d;
    rotate_qkv(
        {chunk.wide, chunk.tokens, columns(layer.qkv), q_heads, kv_heads, d, step_.cos + chunk.begin * d,
         step_.sin + chunk.begin * d, layer.q_norm, layer.k_norm, shape_.eps, step_.row_dtype,
         row_at(rows_.q, chunk.begin * q_heads * d), row_at(rows_.k, kv_row), row_at(rows_.v, kv_row)},
        chunk.threads);
    watch.lap(LayerPart::kNormsAndRotary);
  }

  void after_attention(const DecoderLayer& layer, const Chunk& chunk) const {
    Stopwatch watch(chunk.threads == 1 ? threads_ : 1);
    const int64_t q_width = int64_t{shape_.num_q_heads} * shape_.head_dim;
    float* const x = x_ + chunk.begin * shape_.hidden;
    multiply(layer.o, row_at(rows_.attended, chunk.begin * q_width), step_.row_dtype, q_width, chunk, x,
             LinearEnd::kAdd, watch);
    norm(layer.mlp_norm, chunk, watch);
    multiply(layer.gate_up, chunk.normed, DType::kFloat32, shape_.hidden, chunk, chunk.wide,
             LinearEnd::kSwiGLU, watch);
    multiply(layer.down, chunk.wide, DType::kFloat32, columns(layer.gate_up) / 2, chunk, x, LinearEnd::kAdd,
             watch);
  }

  float* row_at(float* rows, int64_t element) const {
    return reinterpret_cast<float*>(reinterpret_cast<char*>(rows) + element * element_bytes(step_.row_dtype));
  }

  void norm(const float* weight, const Chunk& chunk, Stopwatch& watch) const {
    rms_norm(x_ + chunk.begin * shape_.hidden, shape_.hidden, weight, chunk.tokens, shape_.hidden, shape_.eps,
             chunk.normed, chunk.threads);
    watch.lap(LayerPart::kNormsAndRotary);
  }

  void multiply(const PackedMatrix& weight, const void* x, DType x_dtype, int64_t inputs, const Chunk& chunk,
                float* out, LinearEnd end, Stopwatch& watch) const {
    const int64_t out_columns = columns(weight) / (end == LinearEnd::kSwiGLU ? 2 : 1);
    packed_linear({x, x_dtype, chunk.tokens, inputs, inputs, weight.panels, shape_.weight_dtype,
                   weight.num_panels, weight.bias, out, out_columns, end},
                  chunk.threads);
    watch.lap(LayerPart::kProducts);
  }

  void attend(int64_t index, const DecoderLayer& layer) const {
    Stopwatch watch;
    const int q_heads = shape_.num_q_heads, kv_heads = shape_.num_kv_heads, d = shape_.head_dim;
    const KVView kv = layer_of(step_.kv, index, step_.k_layer_stride, step_.v_layer_stride);
    const TokenRows k{rows_.k, int64_t{kv_heads} * d, d, step_.row_dtype};
    const TokenRows v{rows_.v, int64_t{kv_heads} * d, d, step_.row_dtype};
    append_kv(kv, k, v, step_.slots, tokens(), layer_of(step_.summaries, index, kv), threads_);
    watch.lap(LayerPart::kAppend);
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
    watch.lap(LayerPart::kAttention);
  }

  const DecoderShape& shape_;
  const DecoderStep& step_;
  float* const x_;
  const int threads_;
  const AllRows rows_;
};

// Logits of the wanted rows, which are gathered first where they are not the first ones.
void multiply_head(const Decoder& decoder, const DecoderOutput& output, int num_threads) {
  const int64_t hidden = decoder.shape.hidden;
  const float* inputs = output.states;
  thread_local Scratch memory;
  if (output.rows != nullptr) {
    auto* gathered = reinterpret_cast<float*>(memory.reserve(static_cast<size_t>(output.num_rows * hidden)));
    for (int64_t i = 0; i < output.num_rows; ++i) {
      std::copy_n(output.states + output.rows[i] * hidden, hidden, gathered + i * hidden);
    }
    inputs = gathered;
  }
  packed_linear({inputs, DType::kFloat32, output.num_rows, hidden, hidden, decoder.head->panels,
                 decoder.shape.weight_dtype, decoder.head->num_panels, decoder.head->bias, output.logits,
                 output.logits_stride, LinearEnd::kStore},
                num_threads);
}

}  // namespace

void run_decoder(const Decoder& decoder, const DecoderStep& step, float* x, const DecoderOutput& output,
                 int num_threads) {
  const DecoderShape& shape = decoder.shape;
  const int64_t tokens = step.plan.num_queries;
  check_view(step.kv);
  require(step.kv.num_kv_heads == shape.num_kv_heads && step.kv.head_dim == shape.head_dim, "pool: got ",
          step.kv.num_kv_heads, " KV heads of head_dim ", step.kv.head_dim, ", expected ", shape.num_kv_heads,
          " of ", shape.head_dim);
  require(step.row_dtype == step.kv.dtype || step.kv.dtype == DType::kInt8,
          "dtype: expected that of the pool, or any beside int8 pages");
  require(output.states == nullptr || decoder.norm != nullptr, "states: expected none without a norm");
  require(output.num_rows == 0 || (output.states != nullptr && decoder.head),
          "logits: expected none without a norm and a head");
  require(output.rows != nullptr || output.num_rows <= tokens, "rows: got ", output.num_rows,
          ", expected at most the ", tokens, " tokens");
  for (int64_t i = 0; output.rows != nullptr && i < output.num_rows; ++i) {
    require(output.rows[i] >= 0 && output.rows[i] < tokens, "rows[", i, "]: got ", output.rows[i],
            ", expected 0 <= row < ", tokens);
  }
  check_slots(step.kv, step.slots, tokens);
  check_plan(step.plan, step.kv.num_pages);
  if (tokens == 0) return;
  if (!decoder.layers.empty()) {
    Layers run(shape, step, x, num_threads);
    for (size_t i = 0; i < decoder.layers.size(); ++i) run.run(static_cast<int64_t>(i), decoder.layers[i]);
  }
  if (output.states == nullptr) return;
  Stopwatch watch;
  rms_norm(x, shape.hidden, decoder.norm, tokens, shape.hidden, shape.eps, output.states, num_threads);
  watch.lap(LayerPart::kNormsAndRotary);
  if (output.num_rows > 0) multiply_head(decoder, output, num_threads);
}

std::array<double, 4> decoder_layers_seconds() {
  std::array<double, 4> seconds;
  for (size_t i = 0; i < 4; ++i) seconds[i] = static_cast<double>(nanoseconds[i].load()) * 1e-9;
  return seconds;
}

}  // namespace tts
