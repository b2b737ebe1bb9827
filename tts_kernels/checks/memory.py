"""Finds where the elements of strided tensors lie, and whether two tensors, or two elements, share memory."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

_MAX_WORK = 100_000  # steps of a search for a common address


def extent(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Returns the number of elements from a tensor's first to its last address, inclusive."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def contiguous(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether the elements lie in order without a gap."""
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size == 0:
            return True
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True


def overlaps_itself(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether two elements might have one address: each stride must step over all smaller ones together."""
    reach = 0
    for stride, size in sorted(
        (stride, size) for size, stride in zip(shape, strides, strict=True) if size > 1
    ):
        if stride <= reach:
            return 0 not in shape
        reach += (size - 1) * stride
    return False


def check_storage(name: str, tensor: Tensor, reach: int | None = None) -> None:
    """Checks that there is memory for all elements. reach: bytes from the first to the last, if known."""
    item = tensor.element_size()
    reach = extent(tensor.shape, tensor.stride()) * item if reach is None else reach
    needed = tensor.storage_offset() * item + reach
    if reach and needed > tensor.untyped_storage().nbytes():
        raise ValueError(
            f"{name}: got a storage of {tensor.untyped_storage().nbytes()} bytes, expected at least {needed} "
            "for its shape and strides: it was resized"
        )


class Span(NamedTuple):
    """Where the elements of a tensor lie, in bytes; item: bytes of one element."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    item: int

    @classmethod
    def of(cls, tensor: Tensor) -> Span:
        item = tensor.element_size()
        return cls(tensor.data_ptr(), tuple(tensor.shape), tuple(s * item for s in tensor.stride()), item)


def share_memory(a: Tensor, b: Tensor) -> bool:
    """Whether some element of one overlaps an element of the other. Compares addresses; reads no memory."""
    return spans_meet(Span.of(a), Span.of(b))


def spans_meet(one: Span, other: Span) -> bool:
    """Whether two spans have a byte in common.

    A byte of a span is at address + sum(stride * index) + byte of the element. Two bytes coincide where a sum
    of all strides of both, each taken 0 .. `most` times, equals `distance`: the indices of `other` count
    backwards. Strides are taken from the largest down; the remainder must be within the reach of the smaller
    ones and a multiple of their common divisor. If dimensions nest, as in pages, few remainders are left at
    each stride; more than `_MAX_WORK` count as a common byte.
    """
    if 0 in one.shape or 0 in other.shape:
        return False
    most = Counter({1: one.item + other.item - 2})
    distance = other.address - one.address + other.item - 1
    for size, stride in zip(one.shape, one.strides, strict=True):
        most[stride] += size - 1
    for size, stride in zip(other.shape, other.strides, strict=True):
        most[stride] += size - 1
        distance += stride * (size - 1)
    strides = sorted((stride for stride, times in most.items() if stride and times), reverse=True)
    left, work = {distance}, 0
    for i, stride in enumerate(strides):
        smaller = strides[i + 1 :]
        reach, divisor = sum(s * most[s] for s in smaller), math.gcd(*smaller) or 1
        remainders: set[int] = set()
        for rest in left:
            first, last = max(0, -((reach - rest) // stride)), min(most[stride], rest // stride)
            work += max(0, last - first + 1)
            if work > _MAX_WORK:
                return True
            remainders.update(r for n in range(first, last + 1) if (r := rest - n * stride) % divisor == 0)
        left = remainders
    return 0 in left
