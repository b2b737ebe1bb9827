"""What the calls are made of: a case, and a tree in packed pages of random sizes."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import tts_kernels as tk
from fuzz.mutations import Subclass
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
        summaries=rng.choice(["mean", "minmax", "quarters"]),
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


def slots_of_queries(t: Tree) -> Tensor:
    """int32 [T], where the keys and values of a tree's queries go."""
    return torch.cat([
        t.tables[row].long()[torch.arange(n - m, n) // 16] * 16 + torch.arange(n - m, n) % 16
        for row, (n, m) in enumerate(zip(t.lengths.tolist(), t.query_lens.tolist(), strict=True))
    ]).int()  # fmt: skip
