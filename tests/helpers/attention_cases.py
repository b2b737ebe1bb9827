"""Random trees of branches in a poisoned pool, for the tests of attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from tts_kernels import KVPool, TreePlan, _core, plan, reference

PAGE = 16
LEVELS = [name for name, supported in _core.cpu_isa_levels() if supported]
PAIR_LEVELS = ("amx", "avx512_bf16", "neon_bf16")  # that multiply pairs of bfloat16


@dataclass
class Case:
    """Branches over one layer; every slot that no branch owns holds NaN or infinity."""

    pool: KVPool
    k_slots: Tensor
    v_slots: Tensor
    tables: Tensor
    lengths: Tensor
    query_lens: Tensor
    q: Tensor

    def plan(self, **options: int) -> TreePlan:
        return plan(self.tables, self.lengths, self.query_lens, **options)

    def attend(self, query_block: int = 32, **options: float | None) -> tuple[Tensor, Tensor]:
        return self.pool.attend(0, self.q, self.plan(query_block=query_block), **options)

    def expected(self, **options: float | None) -> tuple[Tensor, Tensor]:
        args = (self.q, self.k_slots, self.v_slots, self.tables, self.lengths, self.query_lens)
        return reference.tree_attention(*args, **options)[:2]

    def only(self, branch: int) -> Case:
        """The same branch on the same pages, alone."""
        begin = int(self.query_lens[:branch].sum())
        q = self.q[begin : begin + int(self.query_lens[branch])]
        one = slice(branch, branch + 1)
        return Case(
            self.pool,
            self.k_slots,
            self.v_slots,
            self.tables[one],
            self.lengths[one],
            self.query_lens[one],
            q,
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


def make_case(
    lengths: list[int],
    parents: list[tuple[int, int]],
    query_lens: list[int],
    *,
    kv_heads: int = 2,
    group: int = 2,
    head_dim: int = 64,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Case:
    generator = torch.Generator().manual_seed(seed)
    tables, num_pages = random_tables(lengths, parents, generator)
    pool = KVPool(num_layers=1, num_kv_heads=kv_heads, head_dim=head_dim, num_pages=num_pages, dtype=dtype)
    poison(pool, generator)
    length_tensor = torch.tensor(lengths, dtype=torch.int32)
    slots = live_slots(tables, length_tensor)
    k, v = torch.randn((2, len(slots), kv_heads, head_dim), generator=generator).to(dtype)
    pool.append(0, k, v, slots)
    k_slots = torch.full((num_pages * PAGE, kv_heads, head_dim), torch.nan, dtype=torch.float64)
    v_slots = k_slots.clone()
    reference.append_kv(k, v, k_slots, v_slots, slots)
    # Logits of a few units: the softmax is neither flat nor one-hot.
    q = 2 * torch.randn((sum(query_lens), kv_heads * group, head_dim), generator=generator)
    query_tensor = torch.tensor(query_lens, dtype=torch.int32)
    return Case(pool, k_slots, v_slots, tables, length_tensor, query_tensor, q.to(dtype))


def poison(pool: KVPool, generator: torch.Generator) -> None:
    bad = torch.tensor([torch.nan, torch.inf, -torch.inf])
    for pages in (pool.k_pages, pool.v_pages):
        pages.copy_(bad[torch.randint(0, 3, pages.shape, generator=generator)])


@st.composite
def random_cases(draw: st.DrawFn, *, head_dims: list[int], groups: list[int], longest: int) -> Case:
    """Branches that fork anywhere, end inside pages that others go on in, or share nothing."""
    lengths: list[int] = []
    parents: list[tuple[int, int]] = []
    for branch in range(draw(st.integers(1, 7))):
        parent = draw(st.integers(0, branch - 1)) if branch else 0
        shared = draw(st.integers(0, lengths[parent])) if branch else 0
        parents.append((parent, shared))
        # A length may end inside the shared pages (a truncated branch) or go on past them.
        lengths.append(draw(st.integers(max(1, shared - 20), shared + 40) | st.integers(1, longest)))
    query_lens = [draw(st.integers(1, min(length, 3)) | st.integers(0, length)) for length in lengths]
    query_lens[0] = max(query_lens[0], 1)
    return make_case(
        lengths,
        parents,
        [min(n, 60) for n in query_lens],
        kv_heads=draw(st.integers(1, 3)),
        group=draw(st.sampled_from(groups)),
        head_dim=draw(st.sampled_from(head_dims)),
        dtype=draw(st.sampled_from([torch.float32, torch.bfloat16])),
        seed=draw(st.integers(0, 2**31)),
    )


@st.composite
def random_options(draw: st.DrawFn) -> dict[str, float | None]:
    """Window, soft cap and scale of tree_attention; logits stay within some ten units, as tolerances ask."""
    return {
        "window": draw(st.none() | st.integers(1, 600)),
        "logits_soft_cap": draw(st.none() | st.floats(1.0, 50.0)),
        "scale": draw(st.none() | st.floats(0.01, 0.12)),
    }
