"""Reading a branch's keys and values back as plain tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .. import _core
from ..backends.choice import kernel
from ..checks import Array, Number, Rule, Signature, integer
from ..checks.pages import (
    INT32,
    are_plain,
    kind_of_pages,
    kv_view,
    no_scales,
    page_arrays,
    scale_arrays,
    token_rows,
)
from .operator import register


def _takes(values: Mapping[str, Any]) -> Signature:
    dtype, plain = kind_of_pages(values)
    return Signature(
        *page_arrays(dtype, plain=plain),
        Array("block_table", "P", INT32),
        Number("length", "length >= 0"),
        Rule("length", "length <= P * page_size" if plain else "length <= P * 16"),
        *scale_arrays(dtype),
        home="k_pages",
        absent=no_scales(dtype),
    )


def gather_kv(
    k_pages: Tensor, v_pages: Tensor, block_table: Tensor, length: int, *, scales: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Keys and values of positions 0 .. length - 1 of a block table.

    Args:
        k_pages, v_pages: one layer of a `KVPool`, or plain pages [num_pages, num_kv_heads, page_size,
            head_dim] with contiguous channels.
        block_table: int32 [P] physical page of each page_size positions; entries beyond `length` are ignored.
        length: number of tokens, 0 <= length <= page_size * P.
        scales: of int8 pages, float32 [num_pages, num_kv_heads, 2].

    Returns:
        k, v: [length, num_kv_heads, head_dim] of the pages' dtype; of int8 pages the values in float32.

    Raises:
        TypeError, ValueError: a dtype, device, shape or stride does not fit, or a page is outside the pool.

    On plain pages the block table is not checked, which would wait for the device: what is in a page outside
    the pool comes back as NaN.
    """
    k, v = _gather_kv(k_pages, v_pages, block_table, integer("length", length), scales)
    return k, v


def _gather_kv_cpu(
    k_pages: Tensor, v_pages: Tensor, block_table: Tensor, length: int, scales: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    if are_plain(k_pages, v_pages):
        return _gather_kv_plain(k_pages, v_pages, block_table, length, scales)
    k, v = _gather_kv_fake(k_pages, v_pages, block_table, length)
    _core.gather_kv(
        kv_view(k_pages, v_pages, scales),
        block_table.data_ptr(),
        block_table.shape[0],
        length,
        token_rows(k),
        token_rows(v),
        torch.get_num_threads(),
    )
    return k, v


def _gather_kv_plain(
    k_pages: Tensor, v_pages: Tensor, block_table: Tensor, length: int, scales: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    k, v = _gather_kv_fake(k_pages, v_pages, block_table, length)
    kernel("gather_kv", k_pages)(k_pages, v_pages, block_table, k, v, scales)
    return k, v


def _gather_kv_fake(
    k_pages: Tensor, v_pages: Tensor, block_table: Tensor, length: int, scales: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    shape = (length, k_pages.shape[1], v_pages.shape[3])
    dtype = torch.float32 if k_pages.dtype.itemsize == 1 else k_pages.dtype
    return k_pages.new_empty(shape, dtype=dtype), v_pages.new_empty(shape, dtype=dtype)


_gather_kv = register(
    "gather_kv(Tensor k_pages, Tensor v_pages, Tensor block_table, int length, Tensor? scales=None) "
    "-> (Tensor, Tensor)",
    _takes,
    cpu=_gather_kv_cpu,
    cuda=_gather_kv_plain,
    fake=_gather_kv_fake,
)
