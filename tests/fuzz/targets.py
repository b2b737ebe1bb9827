"""A valid call of each public function and class, with random sizes, and what its result has to be."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
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
from fuzz.mutations import Subclass
from tts_kernels import reference
from tts_kernels.checks import check_storage, require_dense

FLOATS = (torch.float32, torch.bfloat16)


@dataclass
class Case:
    """A call. direct: of torch.ops, where torch's own errors about the schema are in order."""

    call: Callable[..., Any]
    args: dict[str, Any]
    check: Callable[[dict[str, Any], Any], None] | None = None
    direct: bool = False


def ints(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def copy_of(tensor: Any) -> Any:
    """A copy, or None of what the call will refuse: torch itself crashes on a storage that was resized."""
    if type(tensor) is Subclass:
        tensor = tensor.as_subclass(Tensor)
    try:
        require_dense("tensor", tensor)
        check_storage("tensor", tensor)
    except (TypeError, ValueError):
        return None
    return tensor.detach().clone()


@dataclass
class Tree:
    """Branches that share a prompt, in packed pages of normal numbers."""

    pool: tk.KVPool
    tables: Tensor
    lengths: Tensor
    query_lens: Tensor
    plan: tk.TreePlan


def tree(rng: random.Random, dtype: torch.dtype | None = None, layers: int = 1) -> Tree:
    branches, shared = rng.randint(1, 3), rng.randint(0, 3)
    lengths = [16 * shared + rng.randint(1, 40) for _ in range(branches)]
    counts = [-(-n // 16) - shared for n in lengths]
    num_pages = shared + sum(counts) + 2
    free = list(range(num_pages))
    rng.shuffle(free)
    prompt, free = free[:shared], free[shared:]
    tables = torch.full((branches, shared + max(counts)), -1, dtype=torch.int32)
    for row, count in enumerate(counts):
        tables[row, : shared + count] = ints(*prompt, *free[:count])
        free = free[count:]
    pool = tk.KVPool(
        num_layers=layers,
        num_kv_heads=rng.randint(1, 2),
        head_dim=rng.choice([32, 64]),
        num_pages=num_pages,
        dtype=dtype or rng.choice([*FLOATS, torch.int8]),
        summaries=rng.choice(["mean", "minmax"]),
    )
    for pages in (pool.k_pages, pool.v_pages):
        pages.copy_(
            torch.randint(-127, 128, pages.shape) if pages.dtype == torch.int8 else torch.randn(pages.shape)
        )
    pool.summaries.copy_(torch.randn(pool.summaries.shape).sort(3).values)  # minima before maxima
    if pool.scales is not None:
        pool.scales.fill_(0.01)
    queries = [rng.randint(1, min(3, n)) for n in lengths]
    made = ints(*lengths), ints(*queries)
    return Tree(pool, tables, *made, tk.plan(tables, *made))


def queries(rng: random.Random, t: Tree) -> Tensor:
    dtype = torch.float32 if t.pool.dtype == torch.int8 else t.pool.dtype
    heads = t.pool.num_kv_heads * rng.randint(1, 3)
    return torch.randn(t.plan.num_queries, heads, t.pool.head_dim).to(dtype)


def rms_norm(rng: random.Random) -> Case:
    n = rng.randint(1, 40)
    args = {"x": torch.randn(rng.randint(0, 5), n), "weight": torch.randn(n), "eps": 1e-5}

    def check(a: dict[str, Any], out: Tensor) -> None:
        expected.close(out, reference.rms_norm(a["x"], a["weight"], float(a["eps"])), torch.float32)

    return Case(tk.rms_norm, args, check)


def weight_of(rng: random.Random, inputs: int, outputs: int | None = None) -> tk.PackedWeight:
    dtype, outputs = rng.choice(FLOATS), outputs or rng.randint(1, 40)
    if rng.random() < 0.3:
        gate, up = torch.randn(2, outputs, inputs).to(dtype)
        return tk.PackedWeight.pack_gated(gate, up)
    return tk.PackedWeight.pack(
        torch.randn(outputs, inputs).to(dtype), torch.randn(outputs) if rng.random() < 0.5 else None
    )


def packed_linear(rng: random.Random) -> Case:
    rows, inputs = rng.randint(0, 5), 2 * rng.randint(1, 20)
    weight = weight_of(rng, inputs)
    args: dict[str, Any] = {"x": torch.randn(rows, inputs).to(rng.choice(FLOATS)), "weight": weight}
    args |= {"add_to": None, "out": None}
    if rng.random() < 0.5:
        args["out"] = torch.full((rows, weight.columns), torch.nan)
    elif not weight.gated and weight.columns == weight.outputs:
        args["add_to"] = torch.zeros(rows, weight.columns)

    def call(x: Any, weight: Any, add_to: Any, out: Any) -> Any:
        return copy_of(add_to), copy_of(x), tk.packed_linear(x, weight, add_to=add_to, out=out)

    def check(a: dict[str, Any], result: Any) -> None:
        before, x, out = result
        if x is None:
            return  # lazily zero or negated, which torch's dispatcher resolves
        product = expected.linear(x, a["weight"])
        expected.close(out, product if before is None else product + before.double(), torch.bfloat16)

    return Case(call, args, check)


def rotate_qkv(rng: random.Random) -> Case:
    rows, q, kv, d = rng.randint(0, 4), rng.randint(1, 3), rng.randint(1, 2), 2 * rng.randint(1, 20)
    args: dict[str, Any] = {"qkv": torch.randn(rows, (q + 2 * kv) * d)}
    args |= {"cos": torch.randn(rows, d), "sin": torch.randn(rows, d), "num_q_heads": q, "num_kv_heads": kv}
    args |= {"dtype": rng.choice(FLOATS), "q_norm": None, "k_norm": None, "eps": 1e-6}
    for name in ("q_norm", "k_norm"):
        if rng.random() < 0.5:
            args[name] = torch.randn(d)

    def check(a: dict[str, Any], result: Any) -> None:
        known = {name: a[name] for name in ("q_norm", "k_norm")} | {"eps": float(a["eps"])}
        wanted = reference.rotate_qkv(
            a["qkv"], a["cos"], a["sin"], int(a["num_q_heads"]), int(a["num_kv_heads"]), **known
        )
        for found, want in zip(result, wanted, strict=True):
            expected.close(found, want, a["dtype"])

    return Case(tk.rotate_qkv, args, check)


def sample_tokens(rng: random.Random) -> Case:
    rows, vocab = rng.randint(0, 4), rng.randint(2, 400)
    params = torch.tensor(
        [[rng.choice([0.0, 0.7, 1.0]), 0, 1.0, 0.0, 1.1, rng.random()] for _ in range(rows)]
    )
    args: dict[str, Any] = {"logits": torch.randn(rows, vocab), "params": params.double().view(rows, 6)}
    pairs = sorted({(rng.randrange(rows), rng.randrange(vocab - 1)) for _ in range(4)}) if rows else []
    args |= {"seen": ints(*pairs).view(-1, 2), "suppressed": rng.choice([None, ints(*pairs).view(-1, 2)])}
    args |= {"given": rng.choice([None, torch.zeros(rows, dtype=torch.int64)])}

    def check(a: dict[str, Any], result: Any) -> None:
        tokens, numbers = result
        model = a["logits"].double().log_softmax(-1)
        if len(model) and model.isfinite().all():
            assert ((tokens >= 0) & (tokens < model.shape[1])).all()
            expected.close(numbers[0], model.gather(1, tokens[:, None])[:, 0], torch.float32)
            expected.close(numbers[1], -(model.exp() * model).sum(-1), torch.float32)

    return Case(tk.sample_tokens, args, check)


def append_kv(rng: random.Random) -> Case:
    t = tree(rng)
    (k_pages, v_pages), heads, d = t.pool.layer(0), t.pool.num_kv_heads, t.pool.head_dim
    dtype = torch.float32 if t.pool.dtype == torch.int8 else t.pool.dtype
    tokens = rng.randint(0, 6)
    slots = rng.sample(range(t.pool.num_pages * 16), tokens)
    args: dict[str, Any] = {
        "k": torch.randn(tokens, heads, d).to(dtype),
        "v": torch.randn(tokens, heads, d).to(dtype),
    }
    args |= {"k_pages": k_pages, "v_pages": v_pages, "slots": ints(*slots)}
    args |= {"summaries": rng.choice([None, t.pool.layer_summaries(0)]), "scales": t.pool.layer_scales(0)}

    def check(a: dict[str, Any], _: Any) -> None:
        if a["k_pages"].dtype == torch.int8:
            return
        wanted = {int(slot): i for i, slot in enumerate(a["slots"])}  # the last one stays
        for rows, stored in zip((a["k"], a["v"]), expected.slots_of(a["k_pages"], a["v_pages"]), strict=True):
            for slot, i in wanted.items():
                assert torch.equal(stored[slot].nan_to_num(), rows[i].double().nan_to_num())

    return Case(tk.append_kv, args, check)


def copy_pages(rng: random.Random) -> Case:
    t = tree(rng, layers=2)
    pairs = [
        (rng.randrange(t.pool.num_pages), rng.randrange(t.pool.num_pages)) for _ in range(rng.randint(0, 4))
    ]
    args: dict[str, Any] = {
        "k_pages": t.pool.k_pages,
        "v_pages": t.pool.v_pages,
        "copies": ints(*pairs).view(-1, 2),
    }
    args |= {"summaries": t.pool.summaries, "scales": t.pool.scales}

    def call(**a: Any) -> Any:
        before = [copy_of(a[name]) for name in ("k_pages", "v_pages")]
        tk.copy_pages(**a)
        return before

    def check(a: dict[str, Any], before: Any) -> None:
        for pages, old in zip((a["k_pages"], a["v_pages"]), before, strict=True):
            for source, target in a["copies"].tolist():
                old[:, target] = old[:, source]
            assert torch.equal(pages.double().nan_to_num(), old.double().nan_to_num())

    return Case(call, args, check)


def gather_kv(rng: random.Random) -> Case:
    t = tree(rng)
    row = rng.randrange(len(t.tables))
    args: dict[str, Any] = dict(zip(("k_pages", "v_pages"), t.pool.layer(0), strict=True))
    args |= {"block_table": t.tables[row], "length": int(t.lengths[row]), "scales": t.pool.layer_scales(0)}

    def check(a: dict[str, Any], result: Any) -> None:
        slots, table = expected.slots_of(a["k_pages"], a["v_pages"], a["scales"]), a["block_table"]
        pages, length = len(a["k_pages"]), int(a["length"])
        page_size = len(slots[0]) // pages if pages else 16
        used = table[: -(-length // page_size)]
        if ((used < 0) | (used >= pages)).any():
            return  # of plain pages, as K and V are where they are one tensor: what it gives is NaN
        wanted = reference.gather_kv(*slots, table, length, page_size)
        for found, want in zip(result, wanted, strict=True):
            expected.close(found, want, torch.float32)

    return Case(tk.gather_kv, args, check)


def tree_attention(rng: random.Random) -> Case:
    t = tree(rng)
    args: dict[str, Any] = {"q": queries(rng, t)} | dict(
        zip(("k_pages", "v_pages"), t.pool.layer(0), strict=True)
    )
    args |= {
        "plan": t.plan,
        "scale": rng.choice([None, 0.1]),
        "window": rng.choice([None, rng.randint(1, 60)]),
    }
    args |= {"logits_soft_cap": rng.choice([None, 5.0]), "selection": None, "scales": t.pool.layer_scales(0)}
    if rng.random() < 0.3:
        shape = (t.pool.num_kv_heads, t.plan.num_queries, max(t.plan.max_columns, 1))
        args["selection"] = tk.Selection.from_bools(torch.rand(shape) < 0.6)

    def check(a: dict[str, Any], result: Any) -> None:
        slots = expected.slots_of(a["k_pages"], a["v_pages"], a["scales"])
        scale = a["q"].shape[-1] ** -0.5 if a["scale"] is None else float(a["scale"])
        mask = None if a["selection"] is None else a["selection"].mask
        out, lse = expected.attention(
            a["q"],
            slots,
            a["plan"],
            scale,
            a["window"],
            a["logits_soft_cap"] and float(a["logits_soft_cap"]),
            mask,
        )
        expected.close(result[0], out, a["k_pages"].dtype)
        reads = lse > -torch.inf
        expected.close(result[1][reads], lse[reads], a["k_pages"].dtype)

    return Case(rng.choice([tk.tree_attention, tk.tree_attention_with_mass]), args, check)


def score_pages(rng: random.Random) -> Case:
    t = tree(rng, rng.choice(FLOATS))
    args = {"q": queries(rng, t), "summaries": t.pool.layer_summaries(0), "plan": t.plan, "scale": 0.1}

    def check(a: dict[str, Any], result: Tensor) -> None:
        scale = a["q"].shape[-1] ** -0.5 if a["scale"] is None else float(a["scale"])
        if (a["summaries"][:, :, 0] > a["summaries"][:, :, -1]).any():
            return  # a minimum was changed to more than the maximum
        wanted = expected.scores(a["q"], a["summaries"], a["plan"], scale, a["plan"].max_columns)
        expected.close(result, wanted, a["q"].dtype)

    return Case(tk.score_pages, args, check)


def select_top_pages(rng: random.Random) -> Case:
    t = tree(rng)
    shape = (t.pool.num_kv_heads, t.plan.num_queries, t.plan.max_columns)
    budget = rng.choice([rng.randint(1, 4), torch.randint(1, 5, shape[1:2], dtype=torch.int32)])
    args: dict[str, Any] = {"scores": torch.rand(shape), "plan": t.plan, "budget": budget}
    args |= {"top_p": rng.choice([None, 0.9]), "sink": rng.randint(0, 2), "recent": rng.randint(1, 2)}
    args |= {"tail_begin": None, "groups": None}
    for name in ("tail_begin", "groups"):
        if rng.random() < 0.5:
            args[name] = torch.randint(0, shape[1], shape[1:2], dtype=torch.int32)

    def check(a: dict[str, Any], result: tk.Selection) -> None:
        if a["plan"] is not t.plan:
            return  # the choice does not look at the segments, which may be changed
        chosen = result.to_bools(a["scores"].shape[2])
        limits = (
            a["budget"].tolist() if isinstance(a["budget"], Tensor) else [int(a["budget"])] * chosen.shape[1]
        )
        for row, position, path in expected.paths(a["plan"]):
            seen = len(path)
            assert not chosen[:, row, seen:].any()
            assert chosen[:, row, max(seen - int(a["recent"]), 0) : seen].all()
            if a["groups"] is None and a["tail_begin"] is None:
                least = min(int(a["sink"]) + int(a["recent"]), seen)
                assert (chosen[:, row].sum(-1) <= max(limits[row], least)).all(), position

    return Case(tk.select_top_pages, args, check)


def select_pages(rng: random.Random) -> Case:
    t = tree(rng, rng.choice(FLOATS))
    args = {"q": queries(rng, t), "summaries": t.pool.layer_summaries(0), "plan": t.plan, "budget": 2}
    return Case(tk.select_pages, args)


def count_selected(rng: random.Random) -> Case:
    t = tree(rng)
    shape = (t.pool.num_kv_heads, t.plan.num_queries, t.plan.max_columns)
    args = {"selection": tk.Selection.from_bools(torch.rand(shape) < 0.5), "plan": t.plan}

    def check(a: dict[str, Any], result: tk.SelectionCounts) -> None:
        mask = a["selection"].mask
        read = [
            (head, page)
            for row, _, path in expected.paths(a["plan"])
            for column, page in enumerate(path)
            for head in range(len(mask))
            if page >= 0 and int(mask[head, row, column // 32]) >> (column % 32) & 1
        ]
        assert result == (len(read), len(set(read)))

    return Case(tk.count_selected, args, check)


def plan(rng: random.Random) -> Case:
    t = tree(rng)
    args = {"block_tables": t.tables, "lengths": t.lengths, "query_lens": t.query_lens, "page_size": 16}
    args |= {"query_block": rng.randint(1, 40)}

    def check(a: dict[str, Any], made: tk.TreePlan) -> None:
        if int(a["page_size"]) != 16:
            return
        lengths = torch.as_tensor(a["lengths"]).tolist()
        counts = [1] * len(lengths) if a["query_lens"] is None else torch.as_tensor(a["query_lens"]).tolist()
        wanted = [
            (position, torch.as_tensor(table)[: position // 16 + 1].tolist())
            for table, length, count in zip(a["block_tables"], lengths, counts, strict=True)
            for position in range(length - count, length)
        ]
        assert [(position, path) for _, position, path in sorted(expected.paths(made))] == wanted

    return Case(tk.plan, args, check)


def device_planner(rng: random.Random) -> Case:
    t = tree(rng)
    args: dict[str, Any] = {"num_q_heads": 4, "num_kv_heads": 2, "head_dim": 64, "page_size": 16}
    args |= {"num_pages": t.pool.num_pages, "dtype": torch.float32, "device": "cpu", "capacity": None}
    args |= {"max_columns": None, "workspace": None, "branch_invariant": False}
    args |= {"tables": t.tables, "lengths": t.lengths, "query_lens": t.query_lens}
    if rng.random() < 0.5:
        args["capacity"] = tk.WorkCapacity(64, 64, 64, 1024, 64)

    def call(tables: Any, lengths: Any, query_lens: Any, **options: Any) -> Any:
        return tk.DevicePlanner(**options).update(tables, lengths, query_lens)

    return Case(call, args)


def plain_attention(rng: random.Random) -> Case:
    """On plain pages, in Triton's interpreter, with a plan that was changed."""
    t = tree(rng, torch.float32)
    planner = tk.DevicePlanner(
        num_q_heads=t.pool.num_kv_heads,
        num_kv_heads=t.pool.num_kv_heads,
        head_dim=t.pool.head_dim,
        page_size=16,
        num_pages=t.pool.num_pages,
        dtype=torch.float32,
        device="cpu",
    )
    shape = (t.pool.num_pages, t.pool.num_kv_heads, 16, t.pool.head_dim)
    args: dict[str, Any] = {"q": torch.randn(t.plan.num_queries, t.pool.num_kv_heads, t.pool.head_dim)}
    args |= {"k_pages": torch.randn(shape), "v_pages": torch.randn(shape)}
    args |= {"plan": planner.update(t.tables, t.lengths, t.query_lens), "scale": 0.1}

    def call(plan: Any, **a: Any) -> Any:
        work = getattr(plan, "work", kept)
        if work is not kept and copy_of(work) is not None and work.shape == kept.shape:
            return None  # what a work list holds is trusted, and was changed
        return tk.tree_attention(plan=plan, **a)

    kept = args["plan"].work

    def check(a: dict[str, Any], result: Any) -> None:
        if result is None or not isinstance(a["plan"], tk.DevicePlan) or a["scale"] is None:
            return
        slots = (a["k_pages"].transpose(1, 2).flatten(0, 1), a["v_pages"].transpose(1, 2).flatten(0, 1))
        out, _ = expected.attention(a["q"], (slots[0].double(), slots[1].double()), t.plan, float(a["scale"]))
        rows = t.plan.num_queries
        if a["plan"].num_queries == rows == len(a["q"]):
            expected.close(result[0], out, torch.float32)

    return Case(call, args, check)


def pool(rng: random.Random) -> Case:
    args: dict[str, Any] = {
        "num_layers": 2,
        "num_kv_heads": 2,
        "head_dim": 32,
        "num_pages": 4,
        "budget_bytes": None,
    }
    args |= {"dtype": rng.choice([*FLOATS, torch.int8]), "page_size": 16, "device": "cpu", "layout": None}
    args |= {"summaries": rng.choice([None, "mean", "minmax"]), "layer": 1, "slots": ints(3, 20)}

    def call(layer: Any, slots: Any, **options: Any) -> Any:
        made = tk.KVPool(**options)
        made.layer(layer), made.layer_scales(layer)
        if made.summaries is not None:
            made.layer_summaries(layer)
        if made.layout == "packed":
            rows = torch.ones(2, made.num_kv_heads, made.head_dim)
            made.append(
                layer,
                rows.to(torch.float32 if made.scales is not None else made.dtype),
                rows.to(torch.float32 if made.scales is not None else made.dtype),
                slots,
            )
            made.copy(ints((0, 1)))
            return made.gather(layer, ints(0, 1), 20)[0]
        return None

    return Case(call, args)


def kv_tree(rng: random.Random) -> Case:
    """A tree after some calls, one more of which is changed."""
    made = tk.KVTree(num_pages=12, page_size=4)
    first = made.create()
    made.append([first], [[1, 2, 3, 4, 5, 6]])
    branches = [first, *made.fork(first, n=2)]
    pin = made.pin(branches[1], at=4)
    calls: list[tuple[Any, dict[str, Any]]] = [
        (made.append, {"branches": branches, "tokens": [[7], [8, 9], []]}),
        (made.fork, {"branch": rng.choice([*branches, pin]), "n": 2, "at": 4}),
        (made.truncate, {"branch": branches[2], "length": 3}),
        (made.evict, {"branches": branches[:1], "columns": [0]}),
        (made.release, {"branch": branches[2]}),
        (made.unpin, {"pin": pin}),
        (made.match, {"tokens": [1, 2, 3]}),
        (made.block_tables, {"branches": branches}),
        (made.pages_needed, {"branch": first, "n": 9}),
        (made.tokens, {"branch": first}),
        (made.length, {"branch": first}),
        (made.pin, {"branch": first, "at": 2}),
        (tk.KVTree, {"num_pages": 5, "page_size": 16}),
    ]
    method, args = rng.choice(calls)

    def check(_: dict[str, Any], __: Any) -> None:
        stats = made.stats()
        assert 0 <= stats.resident_pages + made.free_pages == 12
        assert stats.unique_tokens <= 4 * stats.resident_pages

    def call(**a: Any) -> Any:
        try:
            return method(**a)
        finally:
            check(a, None)

    return Case(call, args, check)


def pack(rng: random.Random) -> Case:
    outputs, inputs = rng.randint(1, 40), 2 * rng.randint(1, 10)
    weight = torch.randn(outputs, inputs).to(rng.choice(FLOATS))
    if rng.random() < 0.5:
        return Case(tk.PackedWeight.pack_gated, {"gate": weight, "up": weight.clone()})

    def check(a: dict[str, Any], made: tk.PackedWeight) -> None:
        wanted = a["weight"].double()
        expected.close(expected.matrix_of(made)[: len(wanted)], wanted, torch.float32)

    return Case(tk.PackedWeight.pack, {"weight": weight, "bias": torch.randn(outputs)}, check)


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
    dtype, heads, d, hidden = rng.choice(FLOATS), t.pool.num_kv_heads, t.pool.head_dim, 32

    def packed(outputs: int, inputs: int) -> tk.PackedWeight:
        return tk.PackedWeight.pack((torch.randn(outputs, inputs) * 0.1).to(dtype))

    gate, up = (torch.randn(2, 48, hidden) * 0.1).to(dtype)
    layer = tk.DecoderLayer(
        torch.ones(hidden), packed(3 * heads * d, hidden), None, torch.ones(d), packed(hidden, heads * d),
        torch.ones(hidden), tk.PackedWeight.pack_gated(gate, up), packed(hidden, 48), 0.1, None
    )  # fmt: skip
    args: dict[str, Any] = {"layers": [layer], "num_q_heads": heads, "num_kv_heads": heads, "head_dim": d}
    tokens = t.plan.num_queries
    slots = torch.cat([
        t.tables[row].long()[torch.arange(n - m, n) // 16] * 16 + torch.arange(n - m, n) % 16
        for row, (n, m) in enumerate(zip(t.lengths.tolist(), t.query_lens.tolist(), strict=True))
    ]).int()  # fmt: skip
    args |= {"eps": 1e-5, "x": torch.randn(tokens, hidden), "cos": torch.randn(tokens, d)}
    args |= {"sin": torch.randn(tokens, d), "pool": t.pool, "slots": slots, "plan": t.plan, "dtype": None}
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
        mlp = expected.linear(reference.rms_norm(h, one.mlp_norm, float(a["eps"])), one.gate_up)
        expected.close(a["x"], h + expected.linear(mlp, one.down), torch.bfloat16)
        if a["norm"] is not None and a["head"] is not None and a["logits"] is not None:
            rows = range(len(a["logits"])) if a["rows"] is None else a["rows"].tolist()
            states = reference.rms_norm(a["x"], a["norm"], float(a["eps"]))[list(rows)]
            wanted = expected.linear(states, a["head"])
            expected.close(a["logits"][:, : wanted.shape[1]], wanted, torch.bfloat16)

    return Case(call, args, check)


def selection(rng: random.Random) -> Case:
    chosen = torch.rand(2, 3, rng.randint(0, 70)) < 0.5

    def call(chosen: Any, columns: Any) -> Any:
        return tk.Selection.from_bools(chosen).to_bools(columns)

    def check(a: dict[str, Any], result: Tensor) -> None:
        common = min(a["chosen"].shape[2], result.shape[2])
        assert torch.equal(result[..., :common], a["chosen"][..., :common])

    return Case(call, {"chosen": chosen, "columns": chosen.shape[2]}, check)


def capacity(_: random.Random) -> Case:
    args = {
        "num_queries": 4,
        "num_q_heads": 4,
        "num_kv_heads": 2,
        "num_pages": 9,
        "page_size": 16,
        "num_sms": 8,
    }

    def call(num_queries: Any, **options: Any) -> Any:
        return tk.WorkCapacity.for_queries(num_queries, **options).workspace_bytes(2, 64)

    return Case(call, args)


def costs(rng: random.Random) -> Case:
    sizes: dict[str, Any] = {
        "num_layers": 2,
        "num_q_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 32,
        "hidden": 64,
    }
    sizes |= {"intermediate": 128, "vocab": 100}
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
    angles = torch.randn(3, 8)
    known: list[tuple[Any, tuple[Any, ...]]] = [
        (ops.rms_norm, (x, torch.randn(32), 1e-5)),
        (ops.packed_linear, (x, weight.panels, None, torch.zeros(3, 16), rng.randint(0, 1))),
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
    rotate_qkv: 5,
    sample_tokens: 4,
    append_kv: 6,
    copy_pages: 4,
    gather_kv: 4,
    tree_attention: 9,
    score_pages: 5,
    select_top_pages: 6,
    select_pages: 2,
    count_selected: 3,
    plan: 4,
    device_planner: 3,
    pool: 3,
    kv_tree: 6,
    pack: 3,
    decoder_layers: 5,
    selection: 2,
    capacity: 1,
    costs: 2,
    direct: 9,
}
SLOW = {plain_attention: 1}
