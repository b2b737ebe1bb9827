"""Random trees of branches in a poisoned pool, for the tests of attention."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from tts_kernels import KVPool, TreePlan, plan, reference

PAGE = 16


@dataclass
class Forest:
    """Branches over one layer; every slot that no branch owns holds NaN or infinity.

    k_slots, v_slots: [num_pages * page_size, kv_heads, d] float64, the values that the pages stand for.
    """

    page_size: int
    k_slots: Tensor
    v_slots: Tensor
    tables: Tensor
    lengths: Tensor
    query_lens: Tensor
    q: Tensor

    def expected(self, **options: Any) -> tuple[Tensor, Tensor]:
        return self.expected_with_mass(**options)[:2]

    def expected_with_mass(
        self, chosen: Tensor | None = None, **options: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        args = (self.q.cpu(), self.k_slots, self.v_slots, self.tables, self.lengths, self.query_lens)
        return reference.tree_attention(*args, page_size=self.page_size, chosen=chosen, **options)


@dataclass
class Case(Forest):
    pool: KVPool

    def plan(self, **options: int) -> TreePlan:
        return plan(self.tables, self.lengths, self.query_lens, **options)

    def attend(self, query_block: int = 32, **options: Any) -> tuple[Tensor, Tensor]:
        return self.pool.attend(0, self.q, self.plan(query_block=query_block), **options)

    def only(self, branch: int) -> Case:
        """The same branch on the same pages, alone."""
        begin = int(self.query_lens[:branch].sum())
        one = slice(branch, branch + 1)
        return replace(
            self,
            tables=self.tables[one],
            lengths=self.lengths[one],
            query_lens=self.query_lens[one],
            q=self.q[begin : begin + int(self.query_lens[branch])],
        )


def random_tables(
    lengths: list[int], parents: list[tuple[int, int]], generator: torch.Generator, page_size: int = PAGE
) -> tuple[Tensor, int]:
    """Block tables of branches that share leading pages, and the size of the pool.

    parents[b] = (branch, n): branch b shares the pages that hold the first n tokens of that earlier branch,
    n = 0 for a root. A page shared in part holds the same tokens for both, as after a truncation.
    """
    num_pages = sum(length // page_size + 1 for length in lengths) + 3
    free = torch.randperm(num_pages, generator=generator).tolist()
    tables: list[list[int]] = []
    for length, (parent, shared) in zip(lengths, parents, strict=True):
        pages = -(-length // page_size)
        kept = tables[parent][: min(-(-shared // page_size), pages)] if shared else []
        tables.append(kept + [free.pop() for _ in range(pages - len(kept))])
    width = max(map(len, tables))
    padded = [table + [-1] * (width - len(table)) for table in tables]
    return torch.tensor(padded, dtype=torch.int32), num_pages


def live_slots(tables: Tensor, lengths: Tensor, page_size: int = PAGE) -> Tensor:
    """Slots that any branch holds, each once."""
    slots = []
    for table, length in zip(tables, lengths.tolist(), strict=True):
        position = torch.arange(length)
        slots.append(table.long()[position // page_size] * page_size + position % page_size)
    return torch.cat(slots).unique().int()


def random_queries(
    query_lens: list[int], heads: int, head_dim: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """query_lens as a tensor, and q [T, heads, d].

    Logits are a few units: the softmax is neither flat nor one-hot.
    """
    q = 2 * torch.randn((sum(query_lens), heads, head_dim), generator=generator)
    return torch.tensor(query_lens, dtype=torch.int32), q


def make_case(
    lengths: list[int],
    parents: list[tuple[int, int]],
    query_lens: list[int],
    *,
    kv_heads: int = 2,
    group: int = 2,
    head_dim: int = 64,
    dtype: torch.dtype = torch.float32,
    kv_dtype: torch.dtype | None = None,
    seed: int = 0,
) -> Case:
    """dtype: of queries, and of pages if kv_dtype is None; else that one is int8.

    A page that branches share only in part still has one scale, which belongs to the longest of them.
    """
    generator = torch.Generator().manual_seed(seed)
    tables, num_pages = random_tables(lengths, parents, generator)
    pool = poisoned_pool(generator, num_pages, kv_heads=kv_heads, head_dim=head_dim, dtype=kv_dtype or dtype)
    length_tensor = torch.tensor(lengths, dtype=torch.int32)
    slots = live_slots(tables, length_tensor)
    k, v = torch.randn((2, len(slots), kv_heads, head_dim), generator=generator)
    if kv_dtype is None:
        k, v = k.to(dtype), v.to(dtype)
        pool.append(0, k, v, slots)
        k_slots = torch.full((num_pages * PAGE, kv_heads, head_dim), torch.nan, dtype=torch.float64)
        v_slots = k_slots.clone()
        reference.append_kv(k, v, k_slots, v_slots, slots)
    else:
        # Tokens of very different sizes, so that pages have scales of their own.
        size = torch.rand((num_pages, 1, 1), generator=generator)[slots.long() // PAGE] + 0.1
        pool.append(0, k * size, v * size, slots)
        every_page = torch.arange(num_pages, dtype=torch.int32)
        k_slots, v_slots = (x.double() for x in pool.gather(0, every_page, num_pages * PAGE))
    query_tensor, q = random_queries(query_lens, kv_heads * group, head_dim, generator)
    return Case(PAGE, k_slots, v_slots, tables, length_tensor, query_tensor, q.to(dtype), pool)


def poisoned_pool(
    generator: torch.Generator,
    num_pages: int,
    *,
    layers: int = 1,
    kv_heads: int = 2,
    head_dim: int = 64,
    dtype: torch.dtype,
) -> KVPool:
    """Pages that were never written hold NaN and infinity; of int8, any bytes and scales of NaN."""
    pool = KVPool(
        num_layers=layers, num_kv_heads=kv_heads, head_dim=head_dim, num_pages=num_pages, dtype=dtype
    )
    bad = torch.tensor([torch.nan, torch.inf, -torch.inf])
    for pages in (pool.k_pages, pool.v_pages):
        if pool.scales is None:
            pages.copy_(bad[torch.randint(0, 3, pages.shape, generator=generator)])
        else:
            pages.copy_(torch.randint(-128, 128, pages.shape, generator=generator))
            pool.scales.fill_(torch.nan)
    return pool


@st.composite
def forests(
    draw: st.DrawFn, *, branches: int, longest: int, most_queries: int
) -> tuple[list[int], list[tuple[int, int]], list[int]]:
    """Lengths, parents and query_lens: branches fork anywhere, end inside pages that others continue in, or
    share nothing."""
    lengths: list[int] = []
    parents: list[tuple[int, int]] = []
    for branch in range(draw(st.integers(1, branches))):
        parent = draw(st.integers(0, branch - 1)) if branch else 0
        shared = draw(st.integers(0, lengths[parent])) if branch else 0
        parents.append((parent, shared))
        # A length may end inside the shared pages (a truncated branch) or continue past them.
        lengths.append(draw(st.integers(max(1, shared - 20), shared + 40) | st.integers(1, longest)))
    query_lens = [
        draw(st.integers(1, min(length, 3)) | st.integers(0, min(length, most_queries))) for length in lengths
    ]
    query_lens[0] = max(query_lens[0], 1)
    return lengths, parents, query_lens


@st.composite
def random_cases(
    draw: st.DrawFn,
    *,
    head_dims: list[int],
    groups: list[int],
    longest: int,
    kv_dtype: torch.dtype | None = None,
) -> Case:
    return make_case(
        *draw(forests(branches=7, longest=longest, most_queries=60)),
        kv_heads=draw(st.integers(1, 3)),
        group=draw(st.sampled_from(groups)),
        head_dim=draw(st.sampled_from(head_dims)),
        dtype=draw(st.sampled_from([torch.float32, torch.bfloat16])),
        kv_dtype=kv_dtype,
        seed=draw(st.integers(0, 2**31)),
    )


@st.composite
def random_options(
    draw: st.DrawFn, *, widest: int = 600, largest_scale: float = 0.12
) -> dict[str, float | None]:
    """Window, soft cap and scale of tree_attention; logits stay within what the caller's tolerances ask:
    some ten units at a scale of 0.12, some 50 at 0.3."""
    return {
        "window": draw(st.none() | st.integers(1, widest)),
        "logits_soft_cap": draw(st.none() | st.floats(1.0, 50.0)),
        "scale": draw(st.none() | st.floats(0.01, largest_scale)),
    }
