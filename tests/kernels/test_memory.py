"""Whether tensors share memory: on small ones byte by byte, on pools of pages as engines lay them out, and
without a second search for the next layer."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from torch import Tensor

from tts_kernels import append_kv
from tts_kernels.checks import guard
from tts_kernels.checks.memory import Span, spans_meet


def bytes_of(span: Span) -> set[int]:
    places = set()
    for index in itertools.product(*map(range, span.shape)):
        begin = span.address + sum(i * stride for i, stride in zip(index, span.strides, strict=True))
        places.update(range(begin, begin + span.item))
    return places


def test_spans_meet_where_they_have_a_byte_in_common() -> None:
    rng = random.Random(0)

    def span() -> Span:
        item, dimensions = rng.choice([1, 2, 4]), rng.randint(0, 4)
        shape = tuple(rng.choice([0, 1, 2, 2, 3, 3, 4]) for _ in range(dimensions))
        strides = tuple(item * rng.choice([0, 1, 2, 3, 4, 5, 7, 8, 12, 24]) for _ in range(dimensions))
        return Span(rng.randint(0, 60), shape, strides, item)

    found = set()
    for _ in range(4000):
        one, other = span(), span()
        meet = bool(bytes_of(one) & bytes_of(other))
        assert spans_meet(one, other) == meet, (one, other)
        found.add(meet)
    assert found == {True, False}


def interleaved(
    blocks: int, heads: int, head_dim: int, *, padding: int, gap: int = 0
) -> tuple[Tensor, Tensor]:
    """float32 pages of K and V side by side, head by head; padding: elements behind each block; gap: between
    K and V, where negative their overlap."""
    half = 16 * head_dim
    head = 2 * half + max(gap, 0)
    block = heads * head + padding
    memory = torch.zeros(blocks * block + half)
    k = memory.as_strided((blocks, heads, head_dim, 16), (block, head, 16, 1))
    v = memory.as_strided((blocks, heads, 16, head_dim), (block, head, head_dim, 1), half + gap)
    return k, v


def append(k_pages: Tensor, v_pages: Tensor) -> None:
    rows = torch.ones(1, k_pages.shape[1], k_pages.shape[2])
    append_kv(rows, rows, k_pages, v_pages, torch.tensor([3], dtype=torch.int32))


@pytest.mark.parametrize(("blocks", "heads", "head_dim", "padding"), [(7, 2, 192, 1), (1001, 4, 112, 1)])
def test_padded_blocks_are_a_valid_pool(blocks: int, heads: int, head_dim: int, padding: int) -> None:
    """A search that knows nothing of how dimensions nest finds no end among these."""
    k_pages, v_pages = interleaved(blocks, heads, head_dim, padding=padding)
    append(k_pages, v_pages)
    assert k_pages[0, :, :, 3].eq(1).all()
    assert v_pages[0, :, 3].eq(1).all()
    with pytest.raises(ValueError, match="k_pages: got memory that v_pages shares"):
        append(*interleaved(blocks, heads, head_dim, padding=padding, gap=-1))


def test_the_next_layer_is_not_searched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [interleaved(5, 3, 64, padding=0) for _ in range(3)]
    append(*layers[0])

    def searched(a: Tensor, b: Tensor) -> bool:
        raise AssertionError("this form was known to lie apart")

    with monkeypatch.context() as patched:
        patched.setattr(guard, "share_memory", searched)
        for layer in layers:
            append(*layer)
    # Of the same form, but at another distance.
    k_pages, v_pages = layers[1]
    shifted = v_pages.as_strided(v_pages.shape, v_pages.stride(), v_pages.storage_offset() - 16)
    with pytest.raises(ValueError, match="k_pages: got memory that v_pages shares"):
        append(k_pages, shifted)
    append(k_pages, v_pages)
