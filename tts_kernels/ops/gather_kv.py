"""Reading a branch's keys and values back as plain tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from tts_kernels import _core, backend
from tts_kernels.ops._common import (
    PAGE_SIZE,
    check_devices,
    check_int32,
    check_scales,
    kv_view,
    register,
    token_rows,
)
from tts_kernels.ops._paged import are_plain, check_plain_pages


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
    check_devices(k_pages=k_pages, v_pages=v_pages, block_table=block_table)
    if scales is not None:
        check_devices(k_pages=k_pages, scales=scales)
    k, v = torch.ops.tts_kernels.gather_kv.default(k_pages, v_pages, block_table, length, scales)
    return k, v


def _gather_kv_cpu(
    k_pages: Tensor, v_pages: Tensor, block_table: Tensor, length: int, scales: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    if are_plain(k_pages, v_pages):
        return _gather_kv_plain(k_pages, v_pages, block_table, length, scales)
    kv = kv_view(k_pages, v_pages, scales)
    _check_table(block_table, length, PAGE_SIZE)
    k, v = _gather_kv_fake(k_pages, v_pages, block_table, length)
    _core.gather_kv(
        kv,
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
    check_plain_pages(k_pages, v_pages)
    check_scales(scales, k_pages)
    _check_table(block_table, length, k_pages.shape[2])
    k, v = _gather_kv_fake(k_pages, v_pages, block_table, length)
    backend.kernel("gather_kv", k_pages)(k_pages, v_pages, block_table, k, v, scales)
    return k, v


def _check_table(block_table: Tensor, length: int, page_size: int) -> None:
    check_int32("block_table", block_table)
    pages = block_table.shape[0]
    if not 0 <= length <= page_size * pages:
        raise ValueError(
            f"length: got {length}, expected 0 <= length <= {page_size * pages} (the block table has {pages} "
            "pages)"
        )


def _gather_kv_fake(
    k_pages: Tensor, v_pages: Tensor, block_table: Tensor, length: int, scales: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    shape = (length, k_pages.shape[1], v_pages.shape[3])
    dtype = torch.float32 if k_pages.dtype.itemsize == 1 else k_pages.dtype
    return k_pages.new_empty(shape, dtype=dtype), v_pages.new_empty(shape, dtype=dtype)


register(
    "gather_kv(Tensor k_pages, Tensor v_pages, Tensor block_table, int length, Tensor? scales=None) "
    "-> (Tensor, Tensor)",
    cpu=_gather_kv_cpu,
    cuda=_gather_kv_plain,
    fake=_gather_kv_fake,
)
