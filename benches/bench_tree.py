"""Measures a decode step's host work: fork, append and plan, which run between the model's forwards.

Targets: forking 1,000 branches from 4,096 tokens under 2 ms, planning 256 branches under 1 ms, and 30 us if a
plan for a GPU is only advanced. bench_decode.py, which times the step itself, prints their share of it.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from tts_kernels import DevicePlanner, KVTree, plan

PAGE = 16


def tree_with(prefix: int, branches: int, tail: int, *, shared: bool = True) -> tuple[KVTree, list[int]]:
    """`branches` branches of `prefix` tokens, shared or each its own, and up to `tail` private tokens."""
    rng = np.random.default_rng(0)
    tree = KVTree(
        (prefix // PAGE + tail // PAGE + 2) * (1 if shared else branches) + branches * (tail // PAGE + 2)
    )
    if shared:
        root = tree.create()
        tree.append([root], [list(range(prefix))])
        ids = tree.fork(root, branches)
        tree.release(root)
    else:
        ids = [tree.create() for _ in range(branches)]
        tree.append(ids, [list(range(prefix)) for _ in ids])
    tree.append(ids, [list(range(1 + int(rng.integers(tail)))) for _ in ids])
    return tree, ids


def test_fork(benchmark: BenchmarkFixture) -> None:
    """1,000 children of a branch of 4,096 tokens; released outside the clock."""
    tree, (root,) = tree_with(4095, 1, 1)
    children: list[int] = []

    def release() -> None:
        for child in children:
            tree.release(child)
        children.clear()

    benchmark.pedantic(
        lambda: children.extend(tree.fork(root, 1000)), setup=release, rounds=50, warmup_rounds=2
    )


def test_append(benchmark: BenchmarkFixture) -> None:
    """One token on each of 256 branches."""
    tree, ids = tree_with(2048, 256, 64)
    lengths = [tree.length(branch) for branch in ids]

    def roll_back() -> None:
        for branch, length in zip(ids, lengths, strict=True):
            tree.truncate(branch, length)

    benchmark.pedantic(
        lambda: tree.append(ids, [[7]] * len(ids)), setup=roll_back, rounds=50, warmup_rounds=2
    )


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "unshared"])
@pytest.mark.parametrize("branches", [1, 64, 256])
def test_plan(benchmark: BenchmarkFixture, branches: int, shared: bool) -> None:
    """Block tables and plan of a decode step: 2,048 tokens, shared or not, and up to 64 private ones each."""
    tree, ids = tree_with(2048, branches, 64, shared=shared)
    benchmark.pedantic(lambda: plan(*tree.block_tables(ids)), rounds=50, warmup_rounds=2)


@pytest.mark.parametrize("anew", [True, False], ids=["anew", "advanced"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "unshared"])
def test_device_plan(benchmark: BenchmarkFixture, shared: bool, anew: bool) -> None:
    """Plan of 256 branches for a GPU, block tables apart: the same forest, made anew or after one more token.

    Here the copy to the device is one within main memory.
    """
    tree, ids = tree_with(2048, 256, 1, shared=shared)
    tree.append(ids, [[7] * 3] * len(ids))
    tables, lengths = tree.block_tables(ids)
    planner = DevicePlanner(
        num_q_heads=32,
        num_kv_heads=8,
        head_dim=128,
        page_size=PAGE,
        num_pages=tree.num_pages,
        dtype=torch.bfloat16,
        device="cpu",
    )
    orders = itertools.cycle([tables[::-1].copy(), tables])
    grown = itertools.cycle(lengths + i for i in range(1, 9))

    def step() -> tuple[tuple[object, ...], dict[str, object]]:
        if anew:
            return (next(orders), lengths), {}
        length = next(grown)
        if (length == lengths + 1).all():
            planner.update(tables, lengths)
        return (tables, length), {}

    planner.update(tables, lengths)
    benchmark.pedantic(planner.update, setup=step, rounds=64, warmup_rounds=2)
    assert planner.advanced is not anew
