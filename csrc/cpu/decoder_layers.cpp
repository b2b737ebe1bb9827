#include "cpu/decoder_layers.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <type_traits>

#include "common/error.h"
#include "cpu/check_plan.h"
#include "cpu/kv_ops.h"
#include "cpu/linear.h"
#include "cpu/row_ops.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/scratch.h"

namespace tts {
namespace {

// Buffers between the operators, with a row per token of the step; each is written before it is read.
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

// Tokens per chunk of the operators between two attentions. A chunk runs on one thread and is small enough
// that each operator finds the previous one's output in the L2 cache, yet large enough that weights are not
// read too often: a maximum of 128 or 512 made a prompt of 2,048 tokens 3 or 1 % slower.
constexpr int64_t kMinChunk = 128, kMaxChunk = 256;

struct Chunk {
  int64_t begin, tokens;
  int threads;
  float* normed;  // [tokens, hidden]
  float* added;   // [tokens, hidden], if adding to x takes more than the product's own sum
  float* wide;    // [tokens, outputs of the first product]
};

std::atomic<int64_t> nanoseconds[4];  // by LayerPart

// Adds the time between two calls to a part; `threads` threads do so concurrently.
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

// A layer over some tokens, except its attention.
class LayerRun {
 public:
  LayerRun(const DecoderShape& shape, const DecoderLayer& layer, int64_t tokens, int num_threads)
      : shape_(shape), layer_(layer), tokens_(tokens), threads_(std::max(num_threads, 1)) {}

  void before_attention(const float* x, const RotaryTables& rotary, const HeadRows& heads) const {
    for_each_chunk(columns(layer_.qkv), false, [&](const Chunk& chunk) {
      Stopwatch watch(chunk.threads == 1 ? threads_ : 1);
      const float* const input = normed(layer_.input_norm, rows_of(x, chunk), chunk, watch);
      multiply_rows(hidden_rows(input, chunk), layer_.qkv, {chunk.wide, columns(layer_.qkv), false}, chunk,
                    watch);
      rotate(rotary, heads, chunk);
      watch.lap(LayerPart::kNormsAndRotary);
    });
  }

  // chosen: see DecoderStep.
  void after_attention(const void* attended, DType dtype, const int64_t* chosen, float* x) const {
    const bool sums = layer_.experts || adds_more(layer_.out_norm) || adds_more(layer_.mlp_out_norm);
    for_each_chunk(mlp_columns(), sums, [&](const Chunk& chunk) {
      Stopwatch watch(chunk.threads == 1 ? threads_ : 1);
      const int64_t q_width = int64_t{shape_.num_q_heads} * shape_.head_dim;
      float* const rows = rows_of(x, chunk);
      const float* input = nullptr;
      if (layer_.parallel) input = normed(layer_.mlp_norm, rows, chunk, watch);
      add_product({at(attended, dtype, chunk.begin * q_width), dtype, chunk.tokens, q_width, q_width},
                  layer_.o, layer_.out_norm, chunk, rows, watch);
      if (!layer_.parallel) input = normed(layer_.mlp_norm, rows, chunk, watch);
      if (layer_.experts) {
        add_experts(*layer_.experts, input, chosen, chunk, rows, watch);
      } else {
        add_mlp(input, chunk, rows, watch);
      }
    });
  }

 private:
  // Runs chunks of even length on one thread each, or, if they would be too short, one chunk on all threads.
  template <class Body>
  void for_each_chunk(int64_t width, bool sums, const Body& body) const {
    const int64_t turns = (tokens_ + kMaxChunk * threads_ - 1) / (kMaxChunk * threads_);
    const int64_t chunks = tokens_ < kMinChunk * threads_ ? 1 : turns * threads_;
    parallel_for(threads_, chunks, [&](int64_t i) {
      const int64_t begin = i * tokens_ / chunks, count = (i + 1) * tokens_ / chunks - begin;
      const int64_t hidden = shape_.hidden, narrow = sums ? 2 * hidden : hidden;
      thread_local Scratch memory;
      auto* rows = reinterpret_cast<float*>(memory.reserve(static_cast<size_t>(count * (narrow + width))));
      body({begin, count, chunks == 1 ? threads_ : 1, rows, rows + count * (narrow - hidden),
            rows + count * narrow});
    });
  }

  template <class Float>
  Float* rows_of(Float* x, const Chunk& chunk) const {
    return x + chunk.begin * shape_.hidden;
  }

  template <class Void>
  static Void* at(Void* rows, DType dtype, int64_t element) {
    using Char = std::conditional_t<std::is_const_v<Void>, const char, char>;
    return static_cast<Char*>(rows) + element * element_bytes(dtype);
  }

  const float* normed(const Norm& norm, const float* rows, const Chunk& chunk, Stopwatch& watch) const {
    if (norm.weight == nullptr) return rows;
    norm_rows(
        {rows, shape_.hidden, norm, chunk.tokens, shape_.hidden, shape_.eps, chunk.normed, shape_.hidden},
        chunk.threads);
    watch.lap(LayerPart::kNormsAndRotary);
    return chunk.normed;
  }

  void rotate(const RotaryTables& tables, const HeadRows& heads, const Chunk& chunk) const {
    const int q_heads = shape_.num_q_heads, kv_heads = shape_.num_kv_heads, d = shape_.head_dim;
    HeadNorms norms = layer_.head_norms;
    if (norms.whole) {
      norm_side(norms.q, chunk.wide, int64_t{q_heads} * d, chunk);
      norm_side(norms.k, chunk.wide + int64_t{q_heads} * d, int64_t{kv_heads} * d, chunk);
      norms.q = norms.k = nullptr;
    }
    const bool turns = layer_.rotary.table >= 0;
    const int64_t angle = (layer_.rotary.table * tokens_ + chunk.begin) * shape_.rotary_dim;
    const int64_t kv_row = chunk.begin * kv_heads * d;
    rotate_qkv({chunk.wide, chunk.tokens, columns(layer_.qkv), q_heads, kv_heads, d,
                turns ? tables.cos + angle : nullptr, turns ? tables.sin + angle : nullptr, norms.q, norms.k,
                shape_.eps, heads.dtype, at(heads.q, heads.dtype, chunk.begin * q_heads * d),
                at(heads.k, heads.dtype, kv_row), at(heads.v, heads.dtype, kv_row),
                turns ? shape_.rotary_dim : 0, layer_.rotary.pairs},
               chunk.threads);
  }

  // RMS norm over all queries, or all keys, of a token together, in place.
  void norm_side(const float* weight, float* rows, int64_t n, const Chunk& chunk) const {
    if (weight == nullptr) return;
    const int64_t stride = columns(layer_.qkv);
    norm_rows({rows, stride, {weight, false}, chunk.tokens, n, shape_.eps, rows, stride}, chunk.threads);
  }

  // Columns of the MLP's first product.
  int64_t mlp_columns() const { return layer_.experts ? 0 : columns(layer_.gate_up); }

  void add_mlp(const float* input, const Chunk& chunk, float* rows, Stopwatch& watch) const {
    const bool gated = layer_.gate_up.front().gated, gate_before = layer_.has_gate && !gated;
    const int64_t width = mlp_columns(), mlp = width / (gate_before ? 2 : 1);
    multiply_rows(hidden_rows(input, chunk), layer_.gate_up, {chunk.wide, width, false}, chunk, watch);
    if (!gated) {
      activate_rows(layer_.activation, gate_before, chunk.wide, width, chunk.tokens, mlp, chunk.threads);
      watch.lap(LayerPart::kNormsAndRotary);
    }
    add_product({chunk.wide, DType::kFloat32, chunk.tokens, mlp, width}, layer_.down, layer_.mlp_out_norm,
                chunk, rows, watch);
  }

  void add_experts(const Experts& experts, const float* input, const int64_t* chosen, const Chunk& chunk,
                   float* rows, Stopwatch& watch) const {
    const int64_t* const of_chunk = chosen == nullptr ? nullptr : chosen + chunk.begin * experts.top_k;
    run_experts({experts, input, chunk.tokens, shape_.hidden, of_chunk, chunk.added}, chunk.threads);
    watch.lap(LayerPart::kProducts);
    add_rows(chunk.added, layer_.mlp_out_norm, shape_.eps, layer_.factor, chunk.tokens, shape_.hidden, rows,
             chunk.threads);
    watch.lap(LayerPart::kNormsAndRotary);
  }

  bool adds_more(const Norm& norm) const { return norm.weight != nullptr || layer_.factor != 1; }

  // rows += norm(x weight + bias) factor
  void add_product(const LinearRows& x, const Matrix& weight, const Norm& norm, const Chunk& chunk,
                   float* rows, Stopwatch& watch) const {
    const bool more = adds_more(norm);
    multiply_rows(x, {&weight, 1}, {more ? chunk.added : rows, shape_.hidden, !more}, chunk, watch);
    if (!more) return;
    add_rows(chunk.added, norm, shape_.eps, layer_.factor, chunk.tokens, shape_.hidden, rows, chunk.threads);
    watch.lap(LayerPart::kNormsAndRotary);
  }

  void multiply_rows(const LinearRows& x, std::span<const Matrix> weights, const LinearOut& out,
                     const Chunk& chunk, Stopwatch& watch) const {
    multiply(x, weights, out, chunk.threads);
    watch.lap(LayerPart::kProducts);
  }

  LinearRows hidden_rows(const float* rows, const Chunk& chunk) const {
    return {rows, DType::kFloat32, chunk.tokens, shape_.hidden, shape_.hidden};
  }

  const DecoderShape& shape_;
  const DecoderLayer& layer_;
  const int64_t tokens_;
  const int threads_;
};

void attend(const DecoderShape& shape, const DecoderStep& step, int64_t index, const Attention& attention,
            const AllRows& rows, int num_threads) {
  Stopwatch watch;
  const int q_heads = shape.num_q_heads, kv_heads = shape.num_kv_heads, d = shape.head_dim;
  const KVView kv = layer_of(step.kv, index, step.k_layer_stride, step.v_layer_stride);
  const TokenRows k{rows.k, int64_t{kv_heads} * d, d, step.row_dtype};
  const TokenRows v{rows.v, int64_t{kv_heads} * d, d, step.row_dtype};
  append_kv(kv, k, v, step.slots, step.plan.num_queries, layer_of(step.summaries, index, kv), num_threads);
  watch.lap(LayerPart::kAppend);
  TreeAttentionParams params{};
  params.kv = kv;
  params.plan = step.plan;
  params.q = rows.q;
  params.q_dtype = step.row_dtype;
  params.q_token_stride = int64_t{q_heads} * d;
  params.q_head_stride = d;
  params.num_q_heads = q_heads;
  params.out = rows.attended;
  params.lse = rows.lse;
  params.scale = attention.scale;
  params.soft_cap = attention.soft_cap;
  params.window = attention.window;
  params.sinks = attention.sinks;
  tree_attention(params, num_threads);
  watch.lap(LayerPart::kAttention);
}

void check_experts(const Decoder& decoder, const int64_t* chosen, int64_t tokens) {
  for (const DecoderLayer& layer : decoder.layers) {
    if (chosen == nullptr || !layer.experts) continue;
    const auto count = static_cast<int64_t>(layer.experts->down.size());
    for (int64_t i = 0; i < tokens * layer.experts->top_k; ++i) {
      require(chosen[i] >= 0 && chosen[i] < count, "experts: got ", chosen[i], ", expected 0 <= expert < ",
              count);
    }
  }
}

void check_output(const Decoder& decoder, const DecoderOutput& output, int64_t tokens) {
  require(output.states == nullptr || decoder.norm.weight != nullptr, "states: expected none without a norm");
  require(output.num_rows == 0 || (output.states != nullptr && decoder.head),
          "logits: expected none without a norm and a head");
  require(output.rows != nullptr || output.num_rows <= tokens, "rows: got ", output.num_rows,
          ", expected at most the ", tokens, " tokens");
  for (int64_t i = 0; output.rows != nullptr && i < output.num_rows; ++i) {
    require(output.rows[i] >= 0 && output.rows[i] < tokens, "rows[", i, "]: got ", output.rows[i],
            ", expected 0 <= row < ", tokens);
  }
}

}  // namespace

void before_attention(const Decoder& decoder, int64_t layer, const RotaryTables& rotary, const float* x,
                      int64_t tokens, const HeadRows& heads, int num_threads) {
  if (tokens == 0) return;
  const DecoderLayer& described = decoder.layers.at(static_cast<size_t>(layer));
  LayerRun(decoder.shape, described, tokens, num_threads).before_attention(x, rotary, heads);
}

void after_attention(const Decoder& decoder, int64_t layer, const void* attended, DType dtype, float* x,
                     int64_t tokens, int num_threads) {
  if (tokens == 0) return;
  const DecoderLayer& described = decoder.layers.at(static_cast<size_t>(layer));
  LayerRun(decoder.shape, described, tokens, num_threads).after_attention(attended, dtype, nullptr, x);
}

// Gathers the requested rows first, unless they are the leading ones.
void decoder_logits(const Decoder& decoder, const DecoderOutput& output, int num_threads) {
  if (output.num_rows == 0) return;
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
  multiply({inputs, DType::kFloat32, output.num_rows, hidden, hidden}, {&*decoder.head, 1},
           {output.logits, output.logits_stride, false}, num_threads);
  if (decoder.logit_factor == 1 && decoder.logit_cap == 0) return;
  scale_and_cap_rows(decoder.logit_factor, decoder.logit_cap, output.logits, output.logits_stride,
                     output.num_rows, columns(*decoder.head), num_threads);
}

void decoder_output(const Decoder& decoder, const float* x, int64_t tokens, const DecoderOutput& output,
                    int num_threads) {
  check_output(decoder, output, tokens);
  if (output.states == nullptr || tokens == 0) return;
  const DecoderShape& shape = decoder.shape;
  Stopwatch watch;
  norm_rows({x, shape.hidden, decoder.norm, tokens, shape.hidden, shape.eps, output.states, shape.hidden},
            num_threads);
  watch.lap(LayerPart::kNormsAndRotary);
  decoder_logits(decoder, output, num_threads);
}

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
  check_output(decoder, output, tokens);
  check_experts(decoder, step.experts, tokens);
  check_slots(step.kv, step.slots, tokens);
  check_plan(step.plan, step.kv.num_pages);
  if (tokens == 0) return;
  const AllRows rows(shape, decoder.layers.empty() ? 0 : tokens);
  for (size_t i = 0; i < decoder.layers.size(); ++i) {
    const LayerRun layer(shape, decoder.layers[i], tokens, num_threads);
    layer.before_attention(x, step.rotary, {rows.q, rows.k, rows.v, step.row_dtype});
    attend(shape, step, static_cast<int64_t>(i), decoder.layers[i].attention, rows, std::max(num_threads, 1));
    layer.after_attention(rows.attended, step.row_dtype, step.experts, x);
  }
  decoder_output(decoder, x, tokens, output, num_threads);
}

std::array<double, 4> decoder_layers_seconds() {
  std::array<double, 4> seconds;
  for (size_t i = 0; i < 4; ++i) seconds[i] = static_cast<double>(nanoseconds[i].load()) * 1e-9;
  return seconds;
}

}  // namespace tts
