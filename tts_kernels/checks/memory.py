"""Where the elements of strided tensors lie, and whether two tensors, or two elements, share memory."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from torch import Tensor

_MAX_WORK = 100_000  # steps of numpy's search for a common address; what takes more counts as shared


def extent(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Elements from the first to the last address that a tensor has, inclusive."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def contiguous(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether elements lie in order without a gap."""
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
    """Whether there is memory for all elements; `reach`: the bytes from the first to the last, if known."""
    item = tensor.element_size()
    reach = extent(tensor.shape, tensor.stride()) * item if reach is None else reach
    needed = tensor.storage_offset() * item + reach
    if reach and needed > tensor.untyped_storage().nbytes():
        raise ValueError(
            f"{name}: got a storage of {tensor.untyped_storage().nbytes()} bytes, expected at least {needed} "
            "for its shape and strides: it was resized"
        )


class Span(NamedTuple):
    """A tensor as numpy sees it. `address` and `strides` are in bytes."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    item: int

    @classmethod
    def of(cls, tensor: Tensor) -> Span:
        item = tensor.element_size()
        return cls(tensor.data_ptr(), tuple(tensor.shape), tuple(s * item for s in tensor.stride()), item)

    @property
    def __array_interface__(self) -> dict[str, object]:
        return {
            "version": 3,
            "data": (self.address, True),
            "shape": self.shape,
            "strides": self.strides,
            "typestr": f"|V{self.item}",
        }


def share_memory(a: Tensor, b: Tensor) -> bool:
    """Whether an element of one lies in an element of the other. Reads addresses, not memory."""
    one, other = Span.of(a), Span.of(b)
    first = min(one.address, other.address)
    # From one step to the next everything keeps its distance: the answer is known.
    return _share(
        one._replace(address=one.address - first + 64), other._replace(address=other.address - first + 64)
    )


@lru_cache(maxsize=1024)
def _share(one: Span, other: Span) -> bool:
    try:
        # Any number of steps is allowed, whatever numpy's annotation says.
        return bool(np.shares_memory(np.asarray(one), np.asarray(other), max_work=_MAX_WORK))  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True
