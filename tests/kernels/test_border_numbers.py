"""Numbers, objects and memory at the border of the kernels: what is refused, what copies and tracing give."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from attention_cases import make_case
from border_cases import OPS, emptied, full_case
from fuzz import targets
from torch._subclasses.fake_tensor import FakeTensorMode

import tts_kernels as tk
from tts_kernels import reference

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
        (targets.pack_quantised, "kind", ["IQ1_S", "q4_0", None, 2, b"Q4_0"]),
        (targets.pack_groups, "bits", [*NUMBERS, 3, 9, None]),
        (targets.pack_groups, "zeros", [1.5, 2**70, True, "1", float("nan"), [1], -1, 256, None]),
        (targets.round_weight, "bits", [*NUMBERS, 5, 0, None]),
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
    for bad in (emptied(torch.ones(1200, 2)), torch.ones(2, device="meta"), 10**5000, "x" * 5000):
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
