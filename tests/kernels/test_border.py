"""Nothing crosses into the kernels unchecked: every tensor argument of every function, in every bad kind."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from attention_cases import make_case
from fuzz import targets
from fuzz.mutations import Subclass
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

import tts_kernels as tk
from tts_kernels import reference

OPS = [
    targets.rms_norm,
    targets.packed_linear,
    targets.rotate_qkv,
    targets.sample_tokens,
    targets.append_kv,
    targets.copy_pages,
    targets.gather_kv,
    targets.tree_attention,
    targets.score_pages,
    targets.select_top_pages,
    targets.count_selected,
    targets.decoder_layers,
    targets.pack,
]
NOT_DISPATCHED = (targets.select_top_pages, targets.decoder_layers, targets.pack)


def resized(tensor: Tensor) -> Tensor:
    changed = tensor.detach().clone()
    changed.untyped_storage().resize_(changed.untyped_storage().nbytes() - 1)
    return changed


BAD: dict[str, Callable[[Tensor], Any]] = {
    "meta": lambda t: t.to("meta"),
    "storage resized to 0": lambda t: _emptied(t),
    "storage short by a byte": resized,
    "sparse": lambda t: t.to_sparse(),
    "nested": lambda t: torch.nested.nested_tensor(list(t)),
    "quantized": lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
    "subclass": lambda t: t.as_subclass(Subclass),
    "a list": lambda t: t.tolist(),
    "complex": lambda t: t.to(torch.complex64),
    "one dimension more": lambda t: t[None],
    "0-dim": lambda t: t.flatten()[0],
    "gradient": lambda t: t.detach().clone().requires_grad_(),
}


def _emptied(tensor: Tensor) -> Tensor:
    changed = tensor.detach().clone()
    changed.untyped_storage().resize_(0)
    return changed


def full_case(target: Callable[[random.Random], targets.Case], seed: int = 0) -> targets.Case:
    """A call with tensors that are not empty and as many optional ones as there are."""
    torch.manual_seed(seed)
    cases = [target(random.Random(seed + i)) for i in range(12)]

    def tensors(case: targets.Case) -> int:
        found = [value for value in case.args.values() if isinstance(value, Tensor)]
        return len(found) if all(map(Tensor.numel, found)) else -1

    return max(cases, key=tensors)


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("target", OPS, ids=lambda target: target.__name__)
def test_each_tensor_of_each_function(target: Callable[[random.Random], targets.Case], kind: str) -> None:
    case = full_case(target)
    for name, value in case.args.items():
        if not isinstance(value, Tensor):
            continue
        try:
            bad = BAD[kind](value)
        except RuntimeError:  # torch has no such tensor: an int32 that requires a gradient
            continue
        if kind == "subclass" and target not in (
            targets.select_top_pages,
            targets.decoder_layers,
            targets.pack,
        ):
            continue  # torch unwraps it
        with pytest.raises((TypeError, ValueError), match=name):
            case.call(**(case.args | {name: bad}))
    if kind != "gradient":
        case.call(**case.args)  # as it was, it is accepted


@pytest.mark.parametrize("kind", ["meta", "storage resized to 0", "sparse", "a list", "one dimension more"])
@pytest.mark.parametrize(
    "target",
    [targets.tree_attention, targets.score_pages, targets.select_top_pages, targets.count_selected],
    ids=lambda target: target.__name__,
)
def test_the_buffer_of_a_plan(target: Callable[[random.Random], targets.Case], kind: str) -> None:
    case = full_case(target)
    made = case.args["plan"]
    with pytest.raises((TypeError, ValueError), match="plan"):
        case.call(**(case.args | {"plan": replace(made, buffer=BAD[kind](made.buffer))}))


@pytest.mark.parametrize(
    "target",
    [
        targets.tree_attention,
        targets.score_pages,
        targets.select_top_pages,
        targets.count_selected,
        targets.decoder_layers,
    ],
    ids=lambda target: target.__name__,
)
def test_a_plans_header_is_not_trusted(target: Callable[[random.Random], targets.Case]) -> None:
    case = full_case(target)
    made = case.args["plan"]
    with pytest.raises(ValueError, match=r"plan: got 7 numbers, expected a header of 8|plan.max_columns"):
        case.call(**(case.args | {"plan": replace(made, buffer=made.buffer[:7].clone())}))
    for index in range(5):  # queries, pages, segments, blocks, branches
        for number in (-1, 0, 1 + int(made.buffer[index]), 2**31 - 1):
            buffer = made.buffer.clone()
            buffer[index] = number
            with pytest.raises(ValueError, match="plan: got a header of"):
                case.call(**(case.args | {"plan": replace(made, buffer=buffer)}))
    buffer = made.buffer.clone()
    buffer[6] = 32
    with pytest.raises(ValueError, match=r"plan.page_size: got 32, expected 16"):
        case.call(**(case.args | {"plan": replace(made, buffer=buffer)}))
    # A query less, whose two numbers count as two more pages: the header fills the buffer.
    buffer = made.buffer.clone()
    buffer[0] -= 1
    buffer[1] += 2
    with pytest.raises(ValueError, match="plan: got one of"):
        case.call(**(case.args | {"plan": replace(made, buffer=buffer)}))


def test_optional_tensors_inside_others() -> None:
    x, weight = torch.randn(2, 4), tk.PackedWeight.pack(torch.randn(16, 4), torch.randn(16))
    with pytest.raises(ValueError, match="bias: got a tensor on meta"):
        tk.packed_linear(x, replace(weight, bias=weight.bias.to("meta")))
    weight.bias.untyped_storage().resize_(0)  # behind the back of a weight that was sound
    with pytest.raises(ValueError, match="bias: got a storage of 0 bytes"):
        tk.packed_linear(x, weight)


def test_meta_tensors_in_direct_calls() -> None:
    """Even where all are on meta: nothing that was not computed comes back."""
    ops = torch.ops.tts_kernels
    x, weight, norm = torch.randn(2, 4), torch.randn(4), torch.ones(8)
    angles = torch.randn(2, 8)
    for call in (
        lambda: ops.rms_norm(x, weight.to("meta"), 1e-5),
        lambda: ops.rms_norm(x.to("meta"), weight.to("meta"), 1e-5),
        lambda: ops.rotate_qkv(torch.randn(2, 24), angles, angles, 1, 1, torch.float32, norm.to("meta")),
    ):
        with pytest.raises(ValueError, match="got a tensor on meta"):
            call()


def test_a_decoders_weights_are_looked_at_in_each_call() -> None:
    case = full_case(targets.decoder_layers)
    args = dict(case.args)
    layers = tk.DecoderLayers(
        args.pop("layers"),
        **{name: args.pop(name) for name in targets.DECODER_SIZES},
    )
    layers.layers[0].down.panels.untyped_storage().resize_(8)
    with pytest.raises(ValueError, match=r"layers\[0\].panels: got a storage of 8 bytes"):
        layers(**args)


# -------------------------------------------------------------------------------------------------- overlap


def test_outputs_have_memory_of_their_own() -> None:
    memory = torch.randn(4, 48)
    x, weight = memory[:, :16], tk.PackedWeight.pack(torch.randn(16, 16))
    for bad in (x, memory[:, 8:24], memory.flatten()[:64].view(4, 16)):
        for name in ("out", "add_to"):
            with pytest.raises(ValueError, match=f"{name}: got memory that x shares"):
                tk.packed_linear(x, weight, **{name: bad})
    for name in ("out", "add_to"):
        with pytest.raises(ValueError, match=rf"{name}: got shape .* no two elements at one address"):
            tk.packed_linear(x, weight, **{name: torch.zeros(1, 16).expand(4, 16)})
        with pytest.raises(ValueError, match="got memory that panels shares"):
            tk.packed_linear(x, weight, **{name: weight.panels.flatten()[:64].view(4, 16)})
    # Columns of one matrix are not one memory, though they lie between one another.
    expected = reference.packed_linear(x, torch.eye(16)).float()
    out = tk.packed_linear(x, tk.PackedWeight.pack(torch.eye(16)), out=memory[:, 16:32])
    torch.testing.assert_close(out, expected)


def test_what_is_written_counts_as_changed() -> None:
    """torch's autograd keeps tensors for `backward` and refuses those that were changed since."""
    weight = tk.PackedWeight.pack(torch.eye(16))
    for name in ("out", "add_to"):
        out, other = torch.ones(2, 16), torch.ones(2, 16, requires_grad=True)
        product = (out * other).sum()
        tk.packed_linear(torch.randn(2, 16), weight, **{name: out})
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            product.backward()


@pytest.mark.parametrize("target", [targets.append_kv, targets.copy_pages, targets.decoder_layers])
def test_each_tensor_that_is_written_counts_as_changed(
    target: Callable[[random.Random], targets.Case],
) -> None:
    args = dict(full_case(target, 3).args)
    pool = args.get("pool")
    written = {name: args.get(name) for name in ("x", "logits", "k_pages", "v_pages", "summaries", "scales")}
    if pool is not None:
        written |= {name: getattr(pool, name) for name in ("k_pages", "v_pages", "summaries", "scales")}
    kept = {name: value for name, value in args.items() if isinstance(value, Tensor) and name not in written}
    tensors = [value for value in written.values() if value is not None]
    before = [tensor._version for tensor in tensors]
    full_case(target, 3).call(**args)
    assert all(tensor._version > count for tensor, count in zip(tensors, before, strict=True))
    assert not any(tensor._version for tensor in kept.values())


def test_pages_that_overlap() -> None:
    pool = tk.KVPool(num_layers=1, num_kv_heads=2, head_dim=32, num_pages=3)
    k_pages, v_pages = pool.layer(0)
    rows, slots = torch.randn(2, 2, 32), torch.tensor([3, 20], dtype=torch.int32)
    for bad in (k_pages[:1].expand_as(k_pages), k_pages[:, :1].expand_as(k_pages)):
        with pytest.raises(ValueError, match=r"k_pages: got shape .* no two elements at one address"):
            tk.append_kv(rows, rows, bad, v_pages, slots)
    with pytest.raises(ValueError, match="k_pages: got memory that v_pages shares"):
        tk.append_kv(rows, rows, k_pages, k_pages.view_as(v_pages), slots)
    with pytest.raises(ValueError, match="k_pages: got memory that k shares"):
        tk.append_kv(k_pages.flatten()[:128].view(2, 2, 32), rows, k_pages, v_pages, slots)
    # K and V side by side, page by page, as other engines keep them.
    both = torch.zeros(3, 2, 2 * 16 * 32)
    k_pages, v_pages = both[:, 0].view(3, 2, 32, 16), both[:, 1].view(3, 2, 16, 32)
    tk.append_kv(rows, 2 * rows, k_pages, v_pages, slots)
    k, v = tk.gather_kv(k_pages, v_pages, torch.tensor([0, 1], dtype=torch.int32), 21)
    assert torch.equal(k[[3, 20]], rows)
    assert torch.equal(v[[3, 20]], 2 * rows)


# ---------------------------------------------------------------------------------------------- no gradient


@pytest.mark.parametrize("target", OPS[:11], ids=lambda target: target.__name__)
def test_nothing_has_a_gradient(target: Callable[[random.Random], targets.Case]) -> None:
    """Not in any way that torch has; where nobody asks for one, a parameter is a tensor like others."""
    case = full_case(target)
    for name, value in case.args.items():
        if not (isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64):
            continue

        check_no_gradient(case, name, value)


def check_no_gradient(case: targets.Case, name: str, value: Tensor) -> None:
    def call(tensor: Tensor) -> Tensor:
        result = case.call(**(case.args | {name: tensor}))
        return result[-1] if isinstance(result, tuple) else result

    for transform in (
        lambda: call(value.clone().requires_grad_()),
        lambda: torch.func.grad(lambda t: call(t).sum())(value.clone()),
        lambda: torch.func.jvp(call, (value.clone(),), (value.clone(),)),
        lambda: torch.func.vmap(call)(value.clone()[None]),
    ):
        with pytest.raises((TypeError, ValueError), match=f"{name}: got a tensor"):
            transform()
    with forward_ad.dual_level(), pytest.raises((TypeError, ValueError), match="tangent"):
        call(forward_ad.make_dual(value.clone(), value.clone()))
    with torch.no_grad():
        call(value.clone().requires_grad_())
    with torch.inference_mode():
        call(torch.nn.Parameter(value.clone()))


# -------------------------------------------------------------------------------------------------- numbers

NUMBERS = [1.5, 2**70, True, "1", float("nan"), [1], torch.ones(2)]
REALS = ["a", True, float("nan"), float("inf"), -1.0, 0.0, 1j, 10**400, torch.ones(2), 1e300]


@pytest.mark.parametrize(
    ("target", "name", "bad"),
    [
        (targets.tree_attention, "window", [*NUMBERS, 0, -1]),
        (targets.tree_attention, "scale", REALS),
        (targets.tree_attention, "logits_soft_cap", [*REALS, 1e6]),
        (targets.tree_attention, "plan", [None, 1, "a"]),
        (targets.tree_attention, "selection", [True, torch.zeros(1)]),
        (targets.score_pages, "scale", REALS),
        (targets.gather_kv, "length", [*NUMBERS, -1, None]),
        (targets.rms_norm, "eps", [*REALS, None]),
        (targets.rotate_qkv, "eps", [*REALS, None]),
        (targets.rotate_qkv, "num_q_heads", [*NUMBERS, 0, None]),
        (targets.rotate_qkv, "dtype", ["float32", None, torch.float16, 1]),
        (targets.packed_linear, "weight", [torch.zeros(16, 4), None, "a"]),
        (targets.select_top_pages, "budget", [1.5, True, "1", 0, 2**70, None]),
        (targets.select_top_pages, "top_p", [0.0, 1.5, float("nan"), "a", True]),
        (targets.select_top_pages, "sink", [*NUMBERS, -1, None]),
        (targets.select_top_pages, "recent", [*NUMBERS, 0, None]),
        (targets.select_top_pages, "tail_begin", [1, "a", torch.zeros(99, dtype=torch.int32), [0]]),
        (targets.select_top_pages, "groups", [1, "a", torch.zeros(99, dtype=torch.int32), [0]]),
        (targets.plan, "page_size", [*NUMBERS, 0, None]),
        (targets.plan, "query_block", [*NUMBERS, 0, None]),
        (targets.plan, "lengths", [torch.tensor(5, dtype=torch.int32), 5, None]),
        (targets.pool, "layer", [*NUMBERS, -1, 2, None]),
        (targets.pool, "num_pages", [*NUMBERS, 0]),
        (targets.pool, "summaries", ["max", 1, True, []]),
        (targets.pool, "layout", ["hnd", 1, []]),
        (targets.decoder_layers, "eps", [*REALS, None]),
        (targets.decoder_layers, "layers", [None, 1, [None], ["a"]]),
        (targets.decoder_layers, "pool", [None, 1]),
        (targets.device_planner, "num_pages", [*NUMBERS, 0, None]),
        (targets.capacity, "num_sms", [*NUMBERS, 0, None]),
        (targets.selection, "columns", [*NUMBERS, -1, 96, None]),
    ],
    ids=lambda value: getattr(value, "__name__", value if isinstance(value, str) else ""),
)
def test_numbers_and_objects(
    target: Callable[[random.Random], targets.Case], name: str, bad: list[Any]
) -> None:
    case = full_case(target)
    for value in bad:
        with pytest.raises((TypeError, ValueError), match=name):
            case.call(**(case.args | {name: value}))


def test_numbers_of_numpy_count() -> None:
    np = pytest.importorskip("numpy")
    case = make_case([40], [(0, 0)], [2])
    out, _ = case.attend(window=np.int64(7), scale=np.float32(0.1))
    expected, _ = case.expected(window=7, scale=float(np.float32(0.1)))
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-4)


# ----------------------------------------------------------------------------------------------------- rest


def test_a_score_of_minus_zero_is_a_score_of_zero() -> None:
    made = tk.plan(torch.arange(8, dtype=torch.int32)[None], torch.tensor([128], dtype=torch.int32))
    scores = torch.tensor([-0.0, -0.0, 0.5, -0.0, 0.2, -0.0, 0.3, -0.0])[None, None]
    for budget in range(2, 8):
        chosen = tk.select_top_pages(scores, made, budget).to_bools(8)
        tables, length = torch.arange(8)[None], torch.tensor([128])
        expected = reference.select_top_pages(scores, tables, length, torch.tensor([1]), budget)
        assert torch.equal(chosen, expected)
        assert chosen.sum() == min(budget, 5)  # the first, the last and three with a score


@pytest.mark.parametrize("target", OPS, ids=lambda target: target.__name__)
def test_defaults_of_torch_change_nothing(target: Callable[[random.Random], targets.Case]) -> None:
    case = full_case(target)
    with torch.device("meta"):
        result = case.call(**case.args)
    if case.check is not None and target is not targets.decoder_layers:
        case.check(case.args, result)


def test_new_memory_is_real() -> None:
    """Also what is no operator of torch, which would be traced."""
    selecting, planning = full_case(targets.select_top_pages), full_case(targets.device_planner)
    with torch.device("meta"):
        assert planning.call(**planning.args).work.device.type == "cpu"
    budgets = torch.ones(selecting.args["scores"].shape[1], dtype=torch.int32)
    for mode in (FakeTensorMode(), FakeTensorMode(allow_non_fake_inputs=True)):
        with mode, pytest.raises(TypeError, match="mask: got FakeTensor for new memory"):
            selecting.call(**(selecting.args | {"budget": budgets}))
        with mode, pytest.raises(TypeError, match="workspace: got FakeTensor for new memory"):
            planner()
    torch.set_default_dtype(torch.float64)
    try:
        pool = tk.KVPool(num_layers=1, num_kv_heads=1, head_dim=32, num_pages=1, dtype=torch.int8)
    finally:
        torch.set_default_dtype(torch.float32)
    assert pool.scales.dtype == torch.float32


def test_a_planner_says_that_there_is_no_memory() -> None:
    sizes = {"num_q_heads": 2**30, "num_kv_heads": 2**30, "head_dim": 256, "page_size": 16, "num_pages": 4}
    with pytest.raises(MemoryError, match="workspace: the system does not grant"):
        tk.DevicePlanner(**sizes, dtype=torch.float32, device="cpu")


def test_errors_do_not_look_into_tensors() -> None:
    case = full_case(targets.tree_attention)
    for bad in (_emptied(torch.ones(1200, 2)), torch.ones(2, device="meta"), 10**5000, "x" * 5000):
        for name in ("window", "scale", "logits_soft_cap"):
            with pytest.raises((TypeError, ValueError), match=f"{name}: got ") as caught:
                case.call(**(case.args | {name: bad}))
            assert len(str(caught.value)) < 150


def test_a_copied_pool_is_one_memory() -> None:
    pool = tk.KVPool(
        num_layers=2, num_kv_heads=1, head_dim=32, num_pages=3, dtype=torch.int8, summaries="mean"
    )
    rows, slots = torch.randn(4, 1, 32), torch.arange(4, dtype=torch.int32)
    for other in (pickle.loads(pickle.dumps(pool)), copy.deepcopy(pool), copy.copy(pool)):
        for layer in range(2):
            other.append(layer, rows, rows, slots)
        other.copy(torch.tensor([[0, 2]], dtype=torch.int32))
        for layer in range(2):
            k, v = other.gather(layer, torch.tensor([2], dtype=torch.int32), 4)
            torch.testing.assert_close(k, rows, rtol=0, atol=rows.abs().max().item() / 127)
            torch.testing.assert_close(v, rows, rtol=0, atol=rows.abs().max().item() / 127)


def test_other_copies() -> None:
    case = full_case(targets.decoder_layers)
    args = dict(case.args)
    sizes = {name: args.pop(name) for name in targets.DECODER_SIZES}
    layers = tk.DecoderLayers(args.pop("layers"), **sizes)
    results = []
    for same in (layers, copy.deepcopy(layers), pickle.loads(pickle.dumps(layers)), copy.copy(layers)):
        x = args["x"].clone()
        same(**(args | {"x": x, "pool": copy.deepcopy(args["pool"])}))
        results.append(x)
    assert all(torch.equal(result, results[0]) for result in results)
    for whole in (args["plan"], layers.layers[0].qkv, tk.Selection(torch.zeros(1, 1, 1, dtype=torch.int32))):
        assert type(pickle.loads(pickle.dumps(whole))) is type(whole)
    for pickled in (tk.KVTree(4), planner()):
        with pytest.raises(TypeError, match=type(pickled).__name__ + "|WorkPlanner"):
            pickle.dumps(pickled)


def planner() -> tk.DevicePlanner:
    return tk.DevicePlanner(
        num_q_heads=1,
        num_kv_heads=1,
        head_dim=32,
        page_size=16,
        num_pages=4,
        dtype=torch.float32,
        device="cpu",
    )


def test_objects_without_init() -> None:
    with pytest.raises(TypeError, match="KVTree: got an object that __init__ was not called for"):
        tk.KVTree.__new__(tk.KVTree).create()
    for kind in (tk.Append, tk.TreeStats):
        with pytest.raises(TypeError, match=f"{kind.__name__}: cannot be made"):
            kind.__new__(kind)


def test_a_negated_view_is_its_numbers() -> None:
    x, weight = torch.randn(3, 8), torch.ones(8)
    expected = reference.rms_norm(-x, weight, 1e-5).float()
    torch.testing.assert_close(tk.rms_norm(torch._neg_view(x), weight, 1e-5), expected)


def test_what_is_advised_for_a_negated_output_works() -> None:
    """A sum is another tensor: what is written into it would not be in the one that was passed."""
    x, weight = torch.randn(3, 8), torch.randn(16, 8)
    packed = tk.PackedWeight.pack(weight)
    with pytest.raises(TypeError, match=r"out: got a lazily negated.*torch\.empty where it is written to"):
        tk.packed_linear(x, packed, out=torch._neg_view(torch.empty(3, 16)))
    out = torch.empty(3, 16)
    tk.packed_linear(x, packed, out=out)
    torch.testing.assert_close(out, reference.packed_linear(x, weight).float())


def test_operators_are_traced_and_compiled() -> None:
    x, weight = torch.randn(3, 8), torch.ones(8)
    compiled = torch.compile(lambda t: tk.rms_norm(t, weight, 1e-5) + 1, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), tk.rms_norm(x, weight, 1e-5) + 1)
