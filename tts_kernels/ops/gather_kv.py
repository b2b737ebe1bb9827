"""Reads a branch's keys and values back as plain tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _core
from ..backends.choice import kernel
from ..checks import Array, Number, Result, Rule, Signature, integer
from ..checks.pages import INT32, kind_of_pages, page_arrays, scale_arrays
from .operator import register


def _describe(dtype: torch.dtype, plain: bool) -> Signature:
    rows = "length, num_kv_heads, head_dim"
    values: torch.dtype | str = torch.float32 if dtype.itemsize == 1 else "k_pages"
    return Signature(
        *page_arrays(dtype, plain=plain),
        Array("block_table", "P", INT32),
        Number("length", "length >= 0"),
        Rule("length", "length <= P * page_size" if plain else "length <= P * 16"),
        *scale_arrays(dtype),
        home="k_pages",
        results=(Result("k", rows, values), Result("v", rows, values)),
        plain=plain,
    )


def gather_kv(
    k_pages: Tensor, v_pages: Tensor, block_table: Tensor, length: int, *, scales: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Returns the keys and values at positions 0 .. length - 1 of a block table.

    Args:
        k_pages, v_pages: one layer of a `KVPool`, or plain pages [num_pages, num_kv_heads, page_size,
            head_dim] with contiguous channels.
        block_table: int32 [P], physical page of each page_size positions; entries beyond `length` are
            ignored.
        length: number of tokens, 0 <= length <= page_size * P.
        scales: for int8 pages, float32 [num_pages, num_kv_heads, 2].

    Returns:
        k, v: [length, num_kv_heads, head_dim] of the pages' dtype; float32 values for int8 pages.

    Raises:
        TypeError, ValueError: a dtype, device, shape or stride does not fit, or a page is outside the pool.

    On plain pages the block table is not checked, because the check would wait for the device: positions in a
    page outside the pool come back as NaN.
    """
    k, v = _gather_kv(k_pages, v_pages, block_table, integer("length", length), scales)
    return k, v


def _gather_packed(a: Any) -> None:
    _core.gather_kv(
        _core.KVView(a.k_pages, a.v_pages, a.scales),
        a.block_table.data_ptr(),
        a.block_table.shape[0],
        a.length,
        _core.TokenRows(a.k),
        _core.TokenRows(a.v),
        torch.get_num_threads(),
    )


def _gather_plain(a: Any) -> None:
    kernel("gather_kv", a.k_pages)(a.k_pages, a.v_pages, a.block_table, a.k, a.v, a.scales)


_gather_kv = register(
    "gather_kv",
    "k_pages v_pages block_table length scales",
    lambda values: _describe(*kind_of_pages(values)),
    _describe(torch.float32, plain=False),
    cpu=_gather_packed,
    plain=_gather_plain,
)
