"""Rows of a batch that begin alike: the result of comparing all pairs, in work linear in the rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tts_kernels import KVPool, KVTree
from tts_kernels.integrations.transformers import UnsupportedError
from tts_kernels.integrations.transformers.appending import append
from tts_kernels.integrations.transformers.prefixes import Borrowed, shared_prefixes

PAGE = 16


def kv_of(ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Keys and values [B, 2, S, 8] that a token and its column decide."""
    generator = torch.Generator().manual_seed(0)
    columns = torch.arange(ids.shape[1]).expand_as(ids)
    tables = (torch.randn(2, 50, ids.shape[1], 2, 8, generator=generator) for _ in "kv")
    keys, values = (table[0][ids, columns].transpose(1, 2).to(dtype) for table in tables)
    return keys, values


def compared(ids: Tensor, starts: list[int]) -> list[int]:
    """Tokens in whole pages that each row shares with some earlier row, by comparing all pairs."""
    longest = []
    for row, start in enumerate(starts):
        common = [0]
        for other in range(row):
            if starts[other] == start:
                agree = (ids[row, start:] == ids[other, start:]).long().cumprod(0).sum()
                common.append(int(agree) // PAGE * PAGE)
        longest.append(max(common))
    return longest


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_longest_prefix_of_each_row(dtype: torch.dtype) -> None:
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(0, 50, (1, 70), generator=generator).repeat(9, 1)
        starts = [7 * int(torch.randint(0, 2, (), generator=generator)) for _ in range(9)]
        for row in range(9):  # leaves the others somewhere, as some of its forebears do
            at = int(torch.randint(0, 90, (), generator=generator))
            parent = int(torch.randint(0, row + 1, (), generator=generator))
            ids[row] = ids[parent]
            ids[row, at:] = torch.randint(0, 50, (max(0, 70 - at),), generator=generator)
        keys, values = kv_of(ids, dtype)
        found = shared_prefixes(keys, values, starts, PAGE)
        assert [common for _, common in found] == compared(ids, starts)
        for row, (other, common) in enumerate(found):
            if common:
                assert other < row
                begin, end = starts[row], starts[row] + common
                assert torch.equal(ids[row, begin:end], ids[other, begin:end])


def test_values_count_too() -> None:
    keys, values = kv_of(torch.arange(40).repeat(2, 1), torch.float32)
    values = values.clone()
    values[1, 0, 20, 3] += 1
    assert shared_prefixes(keys, values, [0, 0], PAGE) == [(0, 0), (0, 16)]


class Count(TorchFunctionMode):
    """Calls of torch."""

    calls = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        return function(*args, **(kwargs or {}))


def test_the_work_grows_with_the_rows_and_not_with_their_square() -> None:
    calls = []
    for rows in 16, 32:
        keys, values = kv_of(torch.arange(40).repeat(rows, 1), torch.float32)
        with Count() as count:
            shared_prefixes(keys, values, [0] * rows, PAGE)
        calls.append(count.calls)
    assert calls[1] <= 2 * calls[0]


def test_nan_is_no_agreement() -> None:
    keys, values = torch.randn(2, 4, 2, 8)
    borrowed = Borrowed(torch.tensor([2, 3]), torch.tensor([0, 1]))
    for rows in keys, values:
        rows[2:] = rows[:2]
    borrowed.check(1, keys, values)
    values[3, 1, 5] = float("nan")
    with pytest.raises(UnsupportedError, match="differ in layer 1"):
        borrowed.check(1, keys, values)


class Interrupted:
    """A tree whose second append is interrupted."""

    def __init__(self, tree: KVTree) -> None:
        self.tree, self.calls = tree, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tree, name)

    def append(self, *arguments: Any) -> Any:
        self.calls += 1
        if self.calls == 2:
            raise KeyboardInterrupt
        return self.tree.append(*arguments)


def test_an_interrupt_while_rows_take_slots_leaves_no_branch() -> None:
    pool = KVPool(num_layers=1, num_kv_heads=2, head_dim=32, num_pages=8)
    tree = KVTree(pool.num_pages, pool.page_size)
    branches = [tree.create() for _ in range(3)]
    kv = kv_of(torch.ones(3, 2 * PAGE, dtype=torch.long), torch.float32)
    tokens = [np.ones(2 * PAGE, np.int32)] * 3
    stub: Any = Interrupted(tree)
    with pytest.raises(KeyboardInterrupt):
        append(stub, pool, branches, kv, tokens, share=True)
    assert (tree.stats().branches, tree.free_pages) == (3, pool.num_pages)
