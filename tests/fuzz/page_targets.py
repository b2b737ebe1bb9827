"""Calls that write, copy and read pages, and of the pool and the tree that hold them."""

from __future__ import annotations

import random
from typing import Any

import torch

import tts_kernels as tk
from fuzz import expected
from fuzz.cases import FLOATS, Case, copy_of, ints, tree
from tts_kernels import reference


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


def pool(rng: random.Random) -> Case:
    args: dict[str, Any] = {"num_layers": 2, "num_kv_heads": 2, "head_dim": 32, "num_pages": 4}
    args |= {"dtype": rng.choice([*FLOATS, torch.int8]), "page_size": 16, "budget_bytes": None}
    args |= {"device": "cpu", "layout": None}
    args |= {"summaries": rng.choice([None, "mean", "minmax", "quarters"]), "layer": 1, "slots": ints(3, 20)}

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
    loner = made.create()
    made.append([loner], [list(range(12))])
    pin = made.pin(branches[1], at=4)
    calls: list[tuple[Any, dict[str, Any]]] = [
        (made.append, {"branches": branches, "tokens": [[7], [8, 9], []]}),
        (made.fork, {"branch": rng.choice([*branches, pin]), "n": 2, "at": 4}),
        (made.truncate, {"branch": branches[2], "length": 3}),
        (made.evict, {"branches": branches[:1], "columns": [0]}),
        (made.compact, {"branch": loner, "columns": [0, 1], "keep": 1}),
        (made.page_holders, {"branch": first}),
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
