"""Memory that is handed out again: never while a tensor of it lives."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from tts_decode.model.buffers import MOST_KEPT, Buffers


@given(st.lists(st.tuples(st.integers(0, 40), st.booleans(), st.integers(0, 3)), max_size=30))
def test_what_lives_is_never_handed_out(steps: list[tuple[int, bool, int]]) -> None:
    buffers = Buffers()
    alive: list[tuple[torch.Tensor, int]] = []  # rows of what was handed out, and what was written there
    for number, (rows, keep, drop) in enumerate(steps):
        fresh = buffers.empty(rows, 3)
        assert fresh.shape == (rows, 3)
        assert fresh.dtype == torch.float32
        fresh.fill_(number)
        if keep:
            alive.append((fresh[rows // 2 :].detach(), number))  # a view keeps its memory
        del fresh
        del alive[:drop]
        assert all(bool((part == value).all()) for part, value in alive)


def test_memory_comes_back() -> None:
    buffers = Buffers()
    one = buffers.empty(8, 100)
    address = one.data_ptr()
    row = one[3]
    del one
    assert buffers.empty(8, 100).data_ptr() != address
    del row
    seen = {buffers.empty(rows, 100).data_ptr() for rows in (8, 5, 8, 1)}
    assert len(seen) == 1  # of one memory, also for less


def test_large_memory_is_not_kept() -> None:
    buffers = Buffers()
    buffers.empty(2, MOST_KEPT // 4)
    assert not buffers._kept
