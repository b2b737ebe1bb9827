// Binds a decoder's layers: their descriptions, with borrowed weights, and their execution. bind_cpu.cpp says
// where arguments are checked.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/arguments.h"
#include "bindings/bindings.h"
#include "bindings/gil.h"
#include "bindings/plans.h"
#include "cpu/decoder_layers.h"
#include "cpu/kv_ops.h"

namespace py = pybind11;

namespace tts {
namespace {

using Panels = std::pair<uintptr_t, int64_t>;    // address and count
using NormAddress = std::pair<uintptr_t, bool>;  // weight address (0: none), and whether it is a LayerNorm

Norm norm_at(NormAddress norm) { return {pointer<float>(norm.first), norm.second}; }

RotaryTables tables_at(std::tuple<uintptr_t, uintptr_t, int> rotary) {
  const auto [cos, sin, tables] = rotary;
  return {pointer<float>(cos), pointer<float>(sin), tables};
}

}  // namespace

void bind_decoder(py::module_& m) {
  py::class_<Matrix>(m, "Matrix", py::module_local());
  m.def(
      "float_matrix",
      [](Panels panels, DType dtype, uintptr_t bias, bool gated) {
        return Matrix{FloatPanels{pointer<void>(panels.first), dtype}, panels.second, pointer<float>(bias),
                      gated};
      },
      py::arg("panels"), py::arg("dtype"), py::arg("bias"), py::arg("gated"));
  m.def(
      "quantised_matrix",
      [](Panels panels, const std::vector<int>& form, int64_t blocks, uintptr_t order, uintptr_t bias,
         bool gated) {
        return Matrix{quant_panels(panels.first, form, blocks, order), panels.second, pointer<float>(bias),
                      gated};
      },
      py::arg("panels"), py::arg("form"), py::arg("blocks"), py::arg("order"), py::arg("bias"),
      py::arg("gated"));
  py::class_<SharedExpert>(m, "SharedExpert", py::module_local())
      .def(py::init([](std::vector<Matrix> gate_up, const Matrix& down, const std::optional<Matrix>& share) {
             return SharedExpert{std::move(gate_up), down, share};
           }),
           py::arg("gate_up"), py::arg("down"), py::arg("share") = py::none());
  py::class_<Experts>(m, "Experts", py::module_local())
      .def(py::init([](const Matrix& router, std::vector<std::vector<Matrix>> gate_up,
                       std::vector<Matrix> down, int top_k, bool normalised,
                       std::optional<std::pair<float, float>> clamp,
                       const std::optional<SharedExpert>& shared) {
             Experts experts{router, std::move(gate_up), std::move(down), top_k, normalised};
             if (clamp) experts.clamp = Clamp{clamp->first, clamp->second};
             experts.shared = shared;
             return experts;
           }),
           py::arg("router"), py::arg("gate_up"), py::arg("down"), py::arg("top_k"), py::arg("normalised"),
           py::arg("clamp") = py::none(), py::arg("shared") = py::none());
  py::class_<DecoderLayer>(m, "DecoderLayer", py::module_local())
      .def(py::init([](const std::array<NormAddress, 4>& norms, std::tuple<uintptr_t, uintptr_t, bool> heads,
                       const std::vector<std::vector<Matrix>>& weights, std::pair<int, bool> rotary,
                       std::tuple<float, float, int, uintptr_t> attention, std::pair<int, bool> mlp,
                       bool parallel, float factor, const std::optional<Experts>& experts) {
             const auto [q_norm, k_norm, whole] = heads;
             const auto [scale, soft_cap, window, sinks] = attention;
             return DecoderLayer{.input_norm = norm_at(norms[0]),
                                 .mlp_norm = norm_at(norms[1]),
                                 .out_norm = norm_at(norms[2]),
                                 .mlp_out_norm = norm_at(norms[3]),
                                 .head_norms = {pointer<float>(q_norm), pointer<float>(k_norm), whole},
                                 .qkv = weights.at(0),
                                 .gate_up = experts ? std::vector<Matrix>{} : weights.at(2),
                                 .o = weights.at(1).at(0),
                                 .down = experts ? Matrix{} : weights.at(3).at(0),
                                 .rotary = {rotary.first, rotary.second},
                                 .attention = {scale, soft_cap, window, pointer<float>(sinks)},
                                 .activation = static_cast<Activation>(mlp.first),
                                 .has_gate = mlp.second,
                                 .parallel = parallel,
                                 .factor = factor,
                                 .experts = experts};
           }),
           py::arg("norms"), py::arg("head_norms"), py::arg("weights"), py::arg("rotary"),
           py::arg("attention"), py::arg("mlp"), py::arg("parallel"), py::arg("factor"),
           py::arg("experts") = py::none());
  py::class_<DecoderShape>(m, "DecoderShape", py::module_local())
      .def(py::init([](int64_t hidden, std::tuple<int, int, int> heads, int rotary_dim, float eps) {
             const auto [q_heads, kv_heads, head_dim] = heads;
             return DecoderShape{hidden, q_heads, kv_heads, head_dim, rotary_dim, eps};
           }),
           py::arg("hidden"), py::arg("heads"), py::arg("rotary_dim"), py::arg("eps"));
  py::class_<DecoderOutput>(m, "DecoderOutput", py::module_local())
      .def(py::init([](uintptr_t states, std::pair<uintptr_t, int64_t> rows,
                       std::pair<uintptr_t, int64_t> logits) {
             return DecoderOutput{pointer<float>(states), pointer<int64_t>(rows.first), rows.second,
                                  pointer<float>(logits.first), logits.second};
           }),
           py::arg("states"), py::arg("rows"), py::arg("logits"));
  py::class_<Decoder>(m, "Decoder", py::module_local())
      .def(py::init([](const DecoderShape& shape, std::vector<DecoderLayer> layers, NormAddress norm,
                       const std::optional<Matrix>& head, std::pair<float, float> logits) {
             return Decoder{shape, std::move(layers), norm_at(norm), head, logits.first, logits.second};
           }),
           py::arg("shape"), py::arg("layers"), py::arg("norm"), py::arg("head"), py::arg("logits"))
      .def(
          "run",
          [](const Decoder& decoder, uintptr_t x, std::tuple<uintptr_t, uintptr_t, int> rotary,
             DType row_dtype, const KVView& kv, Strides layer_strides, const SummaryView& summaries,
             uintptr_t slots, PlanInts plan, int64_t tokens, uintptr_t experts, const DecoderOutput& output,
             int num_threads) {
            const PlanView view = view_plan(plan, tokens);
            GilRelease release;
            run_decoder(decoder,
                        {tables_at(rotary), row_dtype, kv, layer_strides.first, layer_strides.second,
                         summaries, pointer<int32_t>(slots), view, pointer<int64_t>(experts)},
                        pointer<float>(x), output, num_threads);
          },
          py::arg("x"), py::arg("rotary"), py::arg("row_dtype"), py::arg("kv"), py::arg("layer_strides"),
          py::arg("summaries"), py::arg("slots"), py::arg("plan"), py::arg("tokens"), py::arg("experts"),
          py::arg("output"), py::arg("num_threads"))
      .def(
          "before_attention",
          [](const Decoder& decoder, int64_t layer, uintptr_t x, int64_t tokens,
             std::tuple<uintptr_t, uintptr_t, int> rotary, const TokenRows& q, uintptr_t k, uintptr_t v,
             int num_threads) {
            GilRelease release;
            before_attention(decoder, layer, tables_at(rotary), pointer<float>(x), tokens,
                             {q.data, pointer<void>(k), pointer<void>(v), q.dtype}, num_threads);
          },
          py::arg("layer"), py::arg("x"), py::arg("tokens"), py::arg("rotary"), py::arg("q"), py::arg("k"),
          py::arg("v"), py::arg("num_threads"))
      .def(
          "after_attention",
          [](const Decoder& decoder, int64_t layer, const TokenRows& attended, uintptr_t x, int64_t tokens,
             int num_threads) {
            GilRelease release;
            after_attention(decoder, layer, attended.data, attended.dtype, pointer<float>(x), tokens,
                            num_threads);
          },
          py::arg("layer"), py::arg("attended"), py::arg("x"), py::arg("tokens"), py::arg("num_threads"))
      .def(
          "output",
          [](const Decoder& decoder, uintptr_t x, int64_t tokens, const DecoderOutput& output,
             int num_threads) {
            GilRelease release;
            decoder_output(decoder, pointer<float>(x), tokens, output, num_threads);
          },
          py::arg("x"), py::arg("tokens"), py::arg("output"), py::arg("num_threads"))
      .def(
          "logits",
          [](const Decoder& decoder, const DecoderOutput& output, int num_threads) {
            GilRelease release;
            decoder_logits(decoder, output, num_threads);
          },
          py::arg("output"), py::arg("num_threads"));
  m.def("decoder_layers_seconds", &decoder_layers_seconds);
}

}  // namespace tts
