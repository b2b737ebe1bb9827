"""Compares sparse with dense attention: one decode step over a long context, with scoring and selection.

Branches on one prompt of 32,768 tokens with 16 tokens of their own each, one query per branch, one layer of
32/8/128 in bfloat16, random keys and queries. `sparse` is select_pages plus tree_attention. Both take turns,
round by round; figures are medians. The time depends on how many pages are chosen, by how many branches, and
where they are. Branches with unrelated queries are the worst case for share="branch"; on a real model 16
leaves together choose about 2.6 times the pages of one (docs/sparse.md), as "related" queries do here.
"""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benches.timing import medians, print_info
from tts_kernels import KVPool, TreePlan, plan, score_pages, select_pages, select_top_pages, tree_attention

CONTEXT = 32768
HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
RELATED = 0.45  # how much of a query is its own, beside 1 in common


def make_tree(branches: int, summaries: str) -> tuple[KVPool, TreePlan]:
    shared = CONTEXT // 16 - 1
    pool = KVPool(
        num_layers=1,
        num_kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        num_pages=shared + branches,
        dtype=torch.bfloat16,
        summaries=summaries,
    )
    slots = torch.arange(pool.num_pages * 16, dtype=torch.int32)
    for part in slots.split(4096):
        k, v = torch.randn((2, len(part), KV_HEADS, HEAD_DIM)).bfloat16()
        pool.append(0, k, v, part)
    own = shared + torch.arange(branches, dtype=torch.int32)[:, None]
    tables = torch.cat([torch.arange(shared, dtype=torch.int32).expand(branches, -1), own], dim=1)
    return pool, plan(tables, torch.full((branches,), CONTEXT, dtype=torch.int32))


@pytest.mark.parametrize("summaries", ["mean", "minmax", "quarters"])
@pytest.mark.parametrize(
    ("together", "related"),
    [(False, False), (False, True), (True, True)],
    ids=["branch", "related", "tree"],
)
@pytest.mark.parametrize("branches", [1, 4, 16, 64])
def test_sparse_step(
    benchmark: BenchmarkFixture, branches: int, together: bool, related: bool, summaries: str
) -> None:
    torch.manual_seed(0)
    pool, made = make_tree(branches, summaries)
    pages, kept = pool.layer(0), pool.layer_summaries(0)
    q = torch.randn((branches, HEADS, HEAD_DIM))
    if related:
        q = torch.randn((1, HEADS, HEAD_DIM)) + RELATED * q
    q = q.bfloat16()
    budget = CONTEXT // 16 // 8
    groups = torch.zeros(branches, dtype=torch.int32) if together else None
    scores = score_pages(q, kept, made)
    selection = select_pages(q, kept, made, budget, groups=groups)

    def sparse() -> None:
        tree_attention(q, *pages, made, selection=select_pages(q, kept, made, budget, groups=groups))

    t = medians(
        {
            "dense": lambda: tree_attention(q, *pages, made),
            "sparse": sparse,
            "score": lambda: score_pages(q, kept, made),
            "select": lambda: select_top_pages(scores, made, budget, groups=groups),
            "attend": lambda: tree_attention(q, *pages, made, selection=selection),
        }
    )
    distinct = selection.to_bools(made.max_columns).any(1).sum(-1).float().mean().item()
    benchmark.extra_info |= {
        "threads": torch.get_num_threads(),
        "microseconds": {name: round(seconds * 1e6) for name, seconds in t.items()},
        "sparse_over_dense": round(t["sparse"] / t["dense"], 3),
        "distinct_pages": round(distinct),
        "budget": budget,
    }
    print_info(benchmark)
    benchmark.pedantic(sparse, rounds=3)
