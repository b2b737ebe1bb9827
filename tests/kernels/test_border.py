"""Nothing crosses into the kernels unchecked: every tensor argument of every function, in every bad kind."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from border_cases import BAD, OPS, full_case
from fuzz import targets
from torch import Tensor
from torch.autograd import forward_ad

import tts_kernels as tk
from tts_kernels import reference

NOT_DISPATCHED = (
    targets.select_top_pages,
    targets.decoder_layers,
    targets.pack,
    targets.pack_quantised,
    targets.pack_groups,
    targets.round_weight,
    targets.paged_attention,
)
WRITTEN = ("x", "logits", "k_pages", "v_pages", "summaries", "scales", "out")
DISPATCHED = [op for op in OPS if op not in NOT_DISPATCHED]


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
        if kind == "subclass" and target in DISPATCHED:
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
        targets.paged_attention,
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


@pytest.mark.parametrize(
    "target", [targets.append_kv, targets.copy_pages, targets.decoder_layers, targets.paged_attention]
)
def test_each_tensor_that_is_written_counts_as_changed(
    target: Callable[[random.Random], targets.Case],
) -> None:
    args = dict(full_case(target, 3).args)
    pool = args.get("pool")
    written = {name: args.get(name) for name in WRITTEN}
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
