// Pages and rows are passed as tensors, everything else as addresses, sizes and strides in elements. The
// Python ops check dtype, device and shape before the call; the kernels check every index.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <tuple>
#include <utility>

#include "bindings/arguments.h"
#include "bindings/bindings.h"
#include "bindings/gil.h"
#include "bindings/plans.h"
#include "bindings/tensors.h"
#include "common/error.h"
#include "cpu/dequantise_rows.h"
#include "cpu/kv_ops.h"
#include "cpu/linear.h"
#include "cpu/quantised_linear.h"
#include "cpu/row_ops.h"
#include "cpu/runtime/isa.h"
#include "cpu/runtime/parallel.h"
#include "cpu/sample_tokens.h"
#include "cpu/score_pages.h"
#include "cpu/select_top_pages.h"
#include "cpu/tree_attention.h"

namespace py = pybind11;

namespace tts {
namespace {

using Columns =
    std::pair<uintptr_t, int64_t>;  // an array [num_kv_heads, T, columns or words]; address 0: none

// Views one layer of packed pages, or the first of several layers: skips `layers` leading dimensions.
KVView make_view(const py::object& k_pages, const py::object& v_pages, const py::object& scales,
                 size_t layers) {
  const Extents k = Extents::strides(k_pages), v = Extents::strides(v_pages), sizes = Extents::sizes(v_pages);
  return {pointer<void>(address_of(k_pages)),
          pointer<void>(address_of(v_pages)),
          k[layers],
          k[layers + 1],
          v[layers],
          v[layers + 1],
          static_cast<int>(sizes[layers]),
          static_cast<int>(sizes[layers + 1]),
          static_cast<int>(sizes[layers + 3]),
          dtype_of(k_pages),
          scales.is_none() ? nullptr : pointer<float>(address_of(scales))};
}

// Rows [tokens, heads, ...], or [tokens, ...] without a head dimension.
TokenRows make_rows(const py::object& rows, bool heads) {
  const Extents strides = Extents::strides(rows);
  return {pointer<void>(address_of(rows)), strides[0], heads ? strides[1] : 0, dtype_of(rows)};
}

SummaryView make_summaries(const py::object& summaries, size_t layers) {
  if (summaries.is_none()) return {nullptr, 0};
  return {pointer<void>(address_of(summaries)), static_cast<int>(Extents::sizes(summaries)[layers + 2])};
}

void bind_ops(py::module_& m) {
  m.def(
      "append_kv",
      [](const KVView& kv, const TokenRows& k, const TokenRows& v, uintptr_t slots, int64_t num_tokens,
         const SummaryView& summaries, int num_threads) {
        GilRelease release;
        append_kv(kv, k, v, pointer<int32_t>(slots), num_tokens, summaries, num_threads);
      },
      py::arg("kv"), py::arg("k"), py::arg("v"), py::arg("slots"), py::arg("num_tokens"),
      py::arg("summaries"), py::arg("num_threads"));
  m.def(
      "copy_pages",
      [](const KVView& kv, int num_layers, Strides layer_strides, uintptr_t copies, int64_t num_copies,
         const SummaryView& summaries, int num_threads) {
        GilRelease release;
        copy_pages(kv, num_layers, layer_strides.first, layer_strides.second, pointer<int32_t>(copies),
                   num_copies, summaries, num_threads);
      },
      py::arg("kv"), py::arg("num_layers"), py::arg("layer_strides"), py::arg("copies"),
      py::arg("num_copies"), py::arg("summaries"), py::arg("num_threads"));
  m.def(
      "gather_kv",
      [](const KVView& kv, uintptr_t block_table, int64_t num_table_pages, int64_t length, const TokenRows& k,
         const TokenRows& v, int num_threads) {
        GilRelease release;
        gather_kv(kv, pointer<int32_t>(block_table), num_table_pages, length, k, v, num_threads);
      },
      py::arg("kv"), py::arg("block_table"), py::arg("num_table_pages"), py::arg("length"), py::arg("k"),
      py::arg("v"), py::arg("num_threads"));
  m.def(
      "tree_attention",
      [](const KVView& kv, PlanInts plan, const TokenRows& q, std::pair<int64_t, int> rows_heads,
         uintptr_t out, uintptr_t lse, float scale, int window, float logits_soft_cap, Columns mask,
         Columns mass, uintptr_t sinks, uintptr_t slopes, int attention_chunk, int num_threads) {
        const auto [rows, num_q_heads] = rows_heads;
        const PlanView view = view_plan(plan, rows);
        GilRelease release;
        tree_attention({kv, view, q.data, q.dtype, q.token_stride, q.head_stride, num_q_heads,
                        pointer<void>(out), pointer<float>(lse), scale, window, logits_soft_cap,
                        pointer<int32_t>(mask.first), mask.second, pointer<float>(mass.first), mass.second,
                        pointer<float>(sinks), pointer<float>(slopes), attention_chunk},
                       num_threads);
      },
      py::arg("kv"), py::arg("plan"), py::arg("q"), py::arg("rows_heads"), py::arg("out"), py::arg("lse"),
      py::arg("scale"), py::arg("window"), py::arg("logits_soft_cap"), py::arg("mask"), py::arg("mass"),
      py::arg("sinks"), py::arg("slopes"), py::arg("attention_chunk"), py::arg("num_threads"));
}

// Takes tensors directly: one call that reads them all costs less than one view object each. k None: append
// nothing.
void append_and_attend(const py::object& q, const py::object& k, const py::object& v,
                       const py::object& k_pages, const py::object& v_pages, const py::object& slots,
                       const py::object& plan, const py::object& out, float scale, int window,
                       float logits_soft_cap, int num_threads) {
  const TokenRows rows = make_rows(q, true);
  const Extents sizes = Extents::sizes(q);
  const int64_t tokens = sizes[0];
  TreeAttentionParams params{};
  params.kv = make_view(k_pages, v_pages, py::none(), 0);
  params.plan = view_plan({address_of(plan), Extents::sizes(plan)[0]}, tokens);
  params.q = rows.data;
  params.q_dtype = rows.dtype;
  params.q_token_stride = rows.token_stride;
  params.q_head_stride = rows.head_stride;
  params.num_q_heads = static_cast<int>(sizes[1]);
  params.out = pointer<void>(address_of(out));
  params.scale = scale;
  params.window = window;
  params.soft_cap = logits_soft_cap;
  const bool append = !k.is_none();
  const TokenRows keys = append ? make_rows(k, true) : TokenRows{};
  const TokenRows values = append ? make_rows(v, true) : TokenRows{};
  const auto* const places = append ? pointer<int32_t>(address_of(slots)) : nullptr;
  GilRelease release;
  check_tree_attention(params);
  if (append) append_kv(params.kv, keys, values, places, tokens, {nullptr, 0}, num_threads);
  run_tree_attention(params, num_threads);
}

void bind_step(py::module_& m) {
  m.def("append_and_attend", &append_and_attend, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("k_pages"),
        py::arg("v_pages"), py::arg("slots"), py::arg("plan"), py::arg("out"), py::arg("scale"),
        py::arg("window"), py::arg("logits_soft_cap"), py::arg("num_threads"));
}

void bind_page_choice(py::module_& m) {
  m.def(
      "score_pages",
      [](const SummaryView& summaries, std::tuple<int, int, int> pages, DType summary_dtype, PlanInts plan,
         const TokenRows& q, std::pair<int64_t, int> rows_heads, float scale, Columns scores,
         int num_threads) {
        const auto [rows, num_q_heads] = rows_heads;
        const PlanView view = view_plan(plan, rows);
        GilRelease release;
        const auto [num_pages, num_kv_heads, head_dim] = pages;
        score_pages(
            {summaries, num_pages, num_kv_heads, head_dim, summary_dtype, view, q.data, q.dtype,
             q.token_stride, q.head_stride, num_q_heads, scale, pointer<float>(scores.first), scores.second},
            num_threads);
      },
      py::arg("summaries"), py::arg("pages"), py::arg("summary_dtype"), py::arg("plan"), py::arg("q"),
      py::arg("rows_heads"), py::arg("scale"), py::arg("scores"), py::arg("num_threads"));
  m.def(
      "select_top_pages",
      [](Columns scores, std::pair<int, int64_t> heads_rows, PlanInts plan, uintptr_t budget, double top_p,
         std::pair<int, int> sink_recent, uintptr_t tail_begin, uintptr_t groups, uintptr_t mask,
         int num_threads) {
        const auto [num_kv_heads, rows] = heads_rows;
        const PlanBuffer known = open_plan(plan, rows);
        GilRelease release;
        select_top_pages({pointer<float>(scores.first), num_kv_heads, rows, scores.second, known.query_order,
                          known.query_position, known.branches, known.header->num_branches,
                          pointer<int32_t>(budget), top_p, sink_recent.first, sink_recent.second,
                          pointer<int32_t>(tail_begin), pointer<int32_t>(groups), pointer<int32_t>(mask)},
                         num_threads);
      },
      py::arg("scores"), py::arg("heads_rows"), py::arg("plan"), py::arg("budget"), py::arg("top_p"),
      py::arg("sink_recent"), py::arg("tail_begin"), py::arg("groups"), py::arg("mask"),
      py::arg("num_threads"));
}

void bind_selection(py::module_& m) {
  m.def(
      "count_selected",
      [](PlanInts plan, Columns mask, std::pair<int, int64_t> heads_rows) {
        const PlanView view = view_plan(plan, heads_rows.second);
        GilRelease release;
        const SelectionCounts counts =
            count_selected(view, pointer<int32_t>(mask.first), heads_rows.first, mask.second, INT32_MAX);
        return std::pair(counts.pairs, counts.loads);
      },
      py::arg("plan"), py::arg("mask"), py::arg("heads_rows"));
}

void bind_sampling(py::module_& m) {
  // (address, length) of a tensor argument of tts_kernels.ops.sample_tokens.
  using Array = std::pair<uintptr_t, int64_t>;
  m.def(
      "sample_tokens",
      [](uintptr_t logits, std::tuple<int64_t, int64_t, int64_t> rows_vocab_stride, uintptr_t params,
         Array seen, Array suppressed, uintptr_t given, Array changed, uintptr_t values, uintptr_t forbidden,
         uintptr_t tokens, uintptr_t numbers, int num_threads) {
        GilRelease release;
        const auto [rows, vocab, stride] = rows_vocab_stride;
        sample_tokens({pointer<float>(logits), rows, vocab, stride, pointer<SampleParams>(params),
                       pointer<RowToken>(seen.first), seen.second, pointer<RowToken>(suppressed.first),
                       suppressed.second, pointer<int64_t>(given), pointer<int64_t>(tokens),
                       pointer<double>(numbers), pointer<RowToken>(changed.first), pointer<float>(values),
                       changed.second, pointer<bool>(forbidden)},
                      num_threads);
      },
      py::arg("logits"), py::arg("rows_vocab_stride"), py::arg("params"), py::arg("seen"),
      py::arg("suppressed"), py::arg("given"), py::arg("changed"), py::arg("values"), py::arg("forbidden"),
      py::arg("tokens"), py::arg("numbers"), py::arg("num_threads"));
}

// end: a LinearEnd.
void multiply_one(const LinearRows& x, Matrix weight, float* out, int64_t out_stride, int end,
                  int num_threads) {
  weight.gated = static_cast<LinearEnd>(end) == LinearEnd::kSwiGLU;
  multiply(x, {&weight, 1}, {out, out_stride, static_cast<LinearEnd>(end) == LinearEnd::kAdd}, num_threads);
}

void bind_linear(py::module_& m) {
  m.def(
      "packed_linear",
      [](const TokenRows& x, std::tuple<int64_t, int64_t, int64_t> rows_inputs_panels, uintptr_t weight,
         DType weight_dtype, uintptr_t bias, uintptr_t out, int64_t out_stride, int end, int num_threads) {
        GilRelease release;
        const auto [rows, inputs, panels] = rows_inputs_panels;
        multiply_one({x.data, x.dtype, rows, inputs, x.token_stride},
                     {FloatPanels{pointer<void>(weight), weight_dtype}, panels, pointer<float>(bias)},
                     pointer<float>(out), out_stride, end, num_threads);
      },
      py::arg("x"), py::arg("rows_inputs_panels"), py::arg("weight"), py::arg("weight_dtype"),
      py::arg("bias"), py::arg("out"), py::arg("out_stride"), py::arg("end"), py::arg("num_threads"));
}

void bind_quantised(py::module_& m) {
  m.def(
      "quant_layout",
      [](const std::vector<int>& form) {
        const QuantLayout layout = quant_layout(quant_form(form));
        return std::pair(layout.inputs, layout.bytes);
      },
      py::arg("form"));
  m.def(
      "quantised_linear",
      [](const TokenRows& x, std::pair<int64_t, int64_t> rows_inputs, const std::vector<int>& form,
         uintptr_t panels, std::pair<int64_t, int64_t> panels_blocks, uintptr_t order, uintptr_t bias,
         uintptr_t out, int64_t out_stride, int end, int num_threads) {
        const QuantPanels known = quant_panels(panels, form, panels_blocks.second, order);
        GilRelease release;
        multiply_one({x.data, x.dtype, rows_inputs.first, rows_inputs.second, x.token_stride},
                     {known, panels_blocks.first, pointer<float>(bias)}, pointer<float>(out), out_stride, end,
                     num_threads);
      },
      py::arg("x"), py::arg("rows_inputs"), py::arg("form"), py::arg("panels"), py::arg("panels_blocks"),
      py::arg("order"), py::arg("bias"), py::arg("out"), py::arg("out_stride"), py::arg("end"),
      py::arg("num_threads"));
  m.def(
      "dequantise_rows",
      [](const std::vector<int>& form, uintptr_t panels, int64_t blocks, uintptr_t order, uintptr_t rows,
         std::pair<int64_t, int64_t> rows_inputs, uintptr_t out, int num_threads) {
        const QuantPanels known = quant_panels(panels, form, blocks, order);
        GilRelease release;
        dequantise_rows(known, pointer<int64_t>(rows), rows_inputs.first, rows_inputs.second,
                        pointer<float>(out), num_threads);
      },
      py::arg("form"), py::arg("panels"), py::arg("blocks"), py::arg("order"), py::arg("rows"),
      py::arg("rows_inputs"), py::arg("out"), py::arg("num_threads"));
}

void bind_rows(py::module_& m) {
  m.def(
      "rms_norm",
      [](const TokenRows& x, uintptr_t weight, std::pair<int64_t, int64_t> shape, float eps, uintptr_t out,
         int num_threads) {
        GilRelease release;
        norm_rows({static_cast<const float*>(x.data),
                   x.token_stride,
                   {pointer<float>(weight), false},
                   shape.first,
                   shape.second,
                   eps,
                   pointer<float>(out),
                   shape.second},
                  num_threads);
      },
      py::arg("x"), py::arg("weight"), py::arg("shape"), py::arg("eps"), py::arg("out"),
      py::arg("num_threads"));
  m.def(
      "rotate_qkv",
      [](const TokenRows& qkv, std::tuple<int64_t, int, int, int> shape, uintptr_t cos, uintptr_t sin,
         std::tuple<uintptr_t, uintptr_t, float> norms, const TokenRows& q, uintptr_t k, uintptr_t v,
         int num_threads) {
        GilRelease release;
        const auto [tokens, q_heads, kv_heads, head_dim] = shape;
        const auto [q_norm, k_norm, eps] = norms;
        rotate_qkv(
            {static_cast<const float*>(qkv.data), tokens, qkv.token_stride, q_heads, kv_heads, head_dim,
             pointer<float>(cos), pointer<float>(sin), pointer<float>(q_norm), pointer<float>(k_norm), eps,
             q.dtype, q.data, pointer<void>(k), pointer<void>(v), head_dim, false},
            num_threads);
      },
      py::arg("qkv"), py::arg("shape"), py::arg("cos"), py::arg("sin"), py::arg("norms"), py::arg("q"),
      py::arg("k"), py::arg("v"), py::arg("num_threads"));
}

void bind_isa(py::module_& m) {
  m.def("cpu_isa", [] { return std::string(cpu_isa().name); });
  m.def("cpu_isa_levels", [] {
    std::vector<std::pair<std::string, bool>> levels;
    for (const CpuIsa& level : cpu_isa_levels()) levels.emplace_back(level.name, level.supported());
    return levels;
  });
  m.def(
      "set_cpu_isa", [](const std::optional<std::string>& name) { set_cpu_isa(name.value_or("")); },
      py::arg("name").none(true));
  m.def("parallel_backend", [] { return std::string(parallel_backend()); });
}

}  // namespace

void bind_cpu(py::module_& m) {
  py::enum_<DType>(m, "DType", "Element type of an array that a CPU kernel reads.", py::module_local())
      .value("float32", DType::kFloat32)
      .value("bfloat16", DType::kBFloat16)
      .value("int8", DType::kInt8);
  py::class_<KVView>(m, "KVView", py::module_local())
      .def(py::init(&make_view), py::arg("k_pages"), py::arg("v_pages"), py::arg("scales") = py::none(),
           py::arg("layers") = 0);
  py::class_<SummaryView>(m, "SummaryView", py::module_local())
      .def(py::init(&make_summaries), py::arg("summaries"), py::arg("layers") = 0);
  py::class_<TokenRows>(m, "TokenRows", py::module_local())
      .def(py::init(&make_rows), py::arg("rows"), py::arg("heads") = true);
  bind_ops(m);
  bind_step(m);
  bind_page_choice(m);
  bind_selection(m);
  bind_sampling(m);
  bind_linear(m);
  bind_quantised(m);
  bind_rows(m);
  bind_isa(m);
}

}  // namespace tts
