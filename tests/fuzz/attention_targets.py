"""Calls of attention, of the plans that it follows, and of the selection of pages."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

import tts_kernels as tk
from fuzz import expected
from fuzz.cases import FLOATS, Case, copy_of, queries, slots_of_queries, tree
from tts_kernels.ops.paged_attention import append_and_attend


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
    for name in ("sinks", "alibi_slopes"):
        args[name] = torch.rand(args["q"].shape[1]) if rng.random() < 0.3 else None
    args["attention_chunk"] = rng.choice([None, None, rng.randint(1, 60)])

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
            a["sinks"],
            a["alibi_slopes"],
            a["attention_chunk"],
        )
        expected.close(result[0], out, a["k_pages"].dtype)
        reads = lse > -torch.inf
        expected.close(result[1][reads], lse[reads], a["k_pages"].dtype)

    return Case(rng.choice([tk.tree_attention, tk.tree_attention_with_mass]), args, check)


def paged_attention(rng: random.Random) -> Case:
    t = tree(rng, rng.choice(FLOATS))
    q = queries(rng, t)
    kv = torch.randn(2, len(q), t.pool.num_kv_heads, t.pool.head_dim).to(q.dtype)
    args: dict[str, Any] = {"q": q, "k": kv[0].clone(), "v": kv[1].clone(), "slots": slots_of_queries(t)}
    args |= dict(zip(("k_pages", "v_pages"), t.pool.layer(0), strict=True))
    args |= {"plan": t.plan, "out": torch.zeros_like(q), "scale": 0.1}
    args |= {"window": rng.choice([None, rng.randint(1, 60)]), "logits_soft_cap": rng.choice([None, 5.0])}

    def call(k: Any, v: Any, slots: Any, out: Any, **a: Any) -> Any:
        append_and_attend(new=(k, v, slots), out=out, **a)
        return out

    def check(a: dict[str, Any], result: Tensor) -> None:
        slots = expected.slots_of(a["k_pages"], a["v_pages"])
        cap = a["logits_soft_cap"] and float(a["logits_soft_cap"])
        out, _ = expected.attention(a["q"], slots, a["plan"], float(a["scale"]), a["window"], cap)
        expected.close(result, out, a["k_pages"].dtype)

    return Case(call, args, check)


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

    made = args["plan"]
    kept = made.work

    def check(a: dict[str, Any], result: Any) -> None:
        if result is None or a["plan"] is not made or a["scale"] is None:
            return  # a changed plan is trusted in what it says of the work list
        slots = (a["k_pages"].transpose(1, 2).flatten(0, 1), a["v_pages"].transpose(1, 2).flatten(0, 1))
        out, _ = expected.attention(a["q"], (slots[0].double(), slots[1].double()), t.plan, float(a["scale"]))
        if t.plan.num_queries == len(a["q"]):
            expected.close(result[0], out, torch.float32)

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
