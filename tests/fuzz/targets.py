"""All targets: a valid call of each public function and class, with random sizes, and what has to come of it.

Here are those that go through several of the others' functions: all layers in one call, torch.ops, costs.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tts_decode.cost import (
    Machine,
    ModelShape,
    SparseBudget,
    SparseCounts,
    StepCounts,
    search_cost,
    step_cost,
)

import tts_kernels as tk
from fuzz import expected
from fuzz.attention_targets import (
    capacity,
    count_selected,
    device_planner,
    paged_attention,
    plain_attention,
    plan,
    score_pages,
    select_pages,
    select_top_pages,
    selection,
    tree_attention,
)
from fuzz.cases import FLOATS, Case, copy_of, ints, queries, slots_of_queries, tree
from fuzz.page_targets import append_kv, copy_pages, gather_kv, kv_tree, pool
from fuzz.product_targets import (
    blocks_of,
    pack,
    pack_groups,
    pack_quantised,
    packed_linear,
    quantised_linear,
    rms_norm,
    rotate_qkv,
    round_weight,
    sample_tokens,
)
from tts_kernels import reference

DECODER_SIZES = (
    "num_q_heads",
    "num_kv_heads",
    "head_dim",
    "eps",
    "norm",
    "head",
)  # of DecoderLayers.__init__


def decoder_layers(rng: random.Random) -> Case:
    t = tree(rng, rng.choice(FLOATS), layers=1)
    heads, d, hidden, mlp = t.pool.num_kv_heads, t.pool.head_dim, 32, 64

    def packed(outputs: int, inputs: int) -> tk.Weight:
        if rng.random() < 0.4:
            return tk.QuantisedWeight.from_gguf("Q8_0", blocks_of("Q8_0", outputs, inputs // 32))
        return tk.PackedWeight.pack((torch.randn(outputs, inputs) * 0.1).to(rng.choice(FLOATS)))

    def side_by_side(count: int, outputs: int) -> tk.Weight | tuple[tk.Weight, ...]:
        if rng.random() < 0.5:
            return packed(count * outputs, hidden)
        return tuple(packed(outputs, hidden) for _ in range(count))

    gate, up = torch.randn(2, mlp, hidden) * 0.1
    gate_up = tk.PackedWeight.pack_gated(gate, up) if rng.random() < 0.3 else side_by_side(2, mlp)
    layer = tk.DecoderLayer(
        torch.ones(hidden), side_by_side(3, heads * d), None, torch.ones(d), packed(hidden, heads * d),
        torch.ones(hidden), gate_up, packed(hidden, mlp), 0.1, None
    )  # fmt: skip
    args: dict[str, Any] = {"layers": [layer], "num_q_heads": heads, "num_kv_heads": heads, "head_dim": d}
    tokens = t.plan.num_queries
    args |= {"eps": 1e-5, "x": torch.randn(tokens, hidden), "cos": torch.randn(tokens, d)}
    args |= {
        "sin": torch.randn(tokens, d),
        "pool": t.pool,
        "slots": slots_of_queries(t),
        "plan": t.plan,
        "dtype": None,
    }
    rows = torch.randint(0, max(tokens, 1), (rng.randint(0, 3) if tokens else 0,))
    args |= {"norm": torch.rand(hidden) + 0.5, "head": packed(20, hidden), "rows": rows}
    args["logits"] = torch.zeros(len(rows), 32)

    def call(layers: Any, x: Any, **others: Any) -> Any:
        sizes = {name: others.pop(name) for name in DECODER_SIZES}
        before = copy_of(x)
        tk.DecoderLayers(layers, **sizes)(x, **others)
        return before

    def check(a: dict[str, Any], x: Tensor) -> None:
        if len(a["layers"]) != 1 or len(a["x"]) == 0:
            return
        one, q_heads, kv_heads = a["layers"][0], int(a["num_q_heads"]), int(a["num_kv_heads"])
        qkv = expected.linear(reference.rms_norm(x, one.input_norm, float(a["eps"])), one.qkv)
        norms = {"q_norm": one.q_norm, "k_norm": one.k_norm, "eps": float(a["eps"])}
        q, _, _ = reference.rotate_qkv(qkv, a["cos"], a["sin"], q_heads, kv_heads, **norms)
        out, _ = expected.attention(
            q, expected.slots_of(*a["pool"].layer(0)), a["plan"], float(one.scale), one.window
        )
        h = x.double() + expected.linear(out.flatten(1), one.o)
        inner = expected.swiglu(reference.rms_norm(h, one.mlp_norm, float(a["eps"])), one.gate_up)
        expected.close(a["x"], h + expected.linear(inner, one.down), torch.bfloat16)
        if a["norm"] is not None and a["head"] is not None and a["logits"] is not None:
            rows = range(len(a["logits"])) if a["rows"] is None else a["rows"].tolist()
            states = reference.rms_norm(a["x"], a["norm"], float(a["eps"]))[list(rows)]
            wanted = expected.linear(states, a["head"])
            expected.close(a["logits"][:, : wanted.shape[1]], wanted, torch.bfloat16)

    return Case(call, args, check)


def costs(rng: random.Random) -> Case:
    sizes: dict[str, Any] = {"num_layers": 2, "num_q_heads": 4, "num_kv_heads": 2, "head_dim": 32}
    sizes |= {"hidden": 64, "intermediate": 128, "vocab": 100}
    if rng.random() < 0.3:
        return Case(ModelShape.gated, sizes)
    shape = ModelShape.gated(**sizes)
    if rng.random() < 0.5:
        args: dict[str, Any] = {"shape": shape, "counts": StepCounts(3, 1, 40, 5, 4, 16)}
        args["sparse"] = rng.choice([None, SparseCounts(1, 3.0, 2.0, 1)])
        return Case(lambda **a: Machine(1e12, 1e11).seconds(step_cost(**a)), args)
    args = {"shape": shape, "prompt": 20, "branches": 2, "generated": 5, "page_size": 16, "chunk": 8}
    args["budget"] = rng.choice([None, SparseBudget(4)])
    return Case(lambda shape, **a: search_cost(shape, **a).total.combined(), args)


def direct(rng: random.Random) -> Case:
    """torch.ops.tts_kernels without the functions around it."""
    ops = torch.ops.tts_kernels
    t = tree(rng, rng.choice(FLOATS))
    p, q = t.plan, queries(rng, t)
    x, rows = torch.randn(3, 32), torch.randn(2, t.pool.num_kv_heads, t.pool.head_dim).to(t.pool.dtype)
    weight = tk.PackedWeight.pack(torch.randn(16, 32))
    few = tk.QuantisedWeight.from_gguf("Q4_0", blocks_of("Q4_0", 16, 1))
    angles = torch.randn(3, 8)
    known: list[tuple[Any, tuple[Any, ...]]] = [
        (ops.rms_norm, (x, torch.randn(32), 1e-5)),
        (ops.packed_linear, (x, weight.panels, None, torch.zeros(3, 16), rng.randint(0, 1))),
        (ops.packed_linear, (x, few.panels, None, torch.zeros(3, 16), rng.randint(0, 1), few.form.numbers)),
        (ops.rotate_qkv, (x, angles, angles.clone(), 2, 1, torch.float32, None, torch.ones(8), 1e-6)),
        (ops.sample_tokens, (x, torch.ones(3, 6).double() * 0.5, ints().view(0, 2), ints().view(0, 2), None)),
        (ops.append_kv, (rows, rows.clone(), *t.pool.layer(0), ints(0, 1), t.pool.layer_summaries(0), None)),
        (ops.copy_pages, (t.pool.k_pages, t.pool.v_pages, ints((0, 1)), t.pool.summaries, None)),
        (ops.gather_kv, (*t.pool.layer(0), ints(0, 1), 20, None)),
        (ops.tree_attention, (q, *t.pool.layer(0), p.buffer, 0.1, None, None, None, None)),
        (
            ops.tree_attention_with_mass,
            (q, *t.pool.layer(0), p.buffer, 0.1, 20, 5.0, None, None, p.max_columns),
        ),
        (ops.score_pages, (q, t.pool.layer_summaries(0), p.buffer, p.max_columns, 0.1)),
    ]
    op, args = rng.choice(known)
    return Case(lambda **a: op(*a.values()), {f"_{i}": value for i, value in enumerate(args)}, direct=True)


# By how often each is called. Triton's interpreter takes some hundred times as long as the rest.
TARGETS: dict[Callable[[random.Random], Case], int] = {
    rms_norm: 4,
    packed_linear: 6,
    quantised_linear: 4,
    rotate_qkv: 5,
    sample_tokens: 4,
    append_kv: 6,
    copy_pages: 4,
    gather_kv: 4,
    tree_attention: 9,
    paged_attention: 4,
    score_pages: 5,
    select_top_pages: 6,
    select_pages: 2,
    count_selected: 3,
    plan: 4,
    device_planner: 3,
    pool: 3,
    kv_tree: 6,
    pack: 3,
    pack_quantised: 3,
    pack_groups: 3,
    round_weight: 2,
    decoder_layers: 5,
    selection: 2,
    capacity: 1,
    costs: 2,
    direct: 9,
}
SLOW = {plain_attention: 1}
