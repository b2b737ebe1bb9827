"""Reading a branch's keys and values back as plain tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from tts_kernels import _core
from tts_kernels.ops._common import check_cpu, check_int32, kv_view, register, token_rows


def gather_kv(k_pages: Tensor, v_pages: Tensor, block_table: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Keys and values of positions 0 .. length - 1 of a block table.

    Args:
        k_pages, v_pages: one layer of a `KVPool`.
        block_table: int32 [P] physical page of each 16 positions; entries beyond `length` are ignored.
        length: number of tokens, 0 <= length <= 16 P.

    Returns:
        k, v: [length, num_kv_heads, head_dim] of the pages' dtype.

    Raises:
        TypeError, ValueError: a dtype, device, shape or stride does not fit, or a page is outside the pool.
    """
    check_cpu(k_pages=k_pages, v_pages=v_pages, block_table=block_table)
    k, v = torch.ops.tts_kernels.gather_kv.default(k_pages, v_pages, block_table, length)
    return k, v


def _gather_kv_cpu(
    k_pages: Tensor, v_pages: Tensor, block_table: Tensor, length: int
) -> tuple[Tensor, Tensor]:
    kv = kv_view(k_pages, v_pages)
    check_int32("block_table", block_table)
    pages = block_table.shape[0]
    if not 0 <= length <= 16 * pages:
        raise ValueError(
            f"length: got {length}, expected 0 <= length <= {16 * pages} (the block table has {pages} pages)"
        )
    k, v = _gather_kv_fake(k_pages, v_pages, block_table, length)
    _core.gather_kv(
        kv, block_table.data_ptr(), pages, length, token_rows(k), token_rows(v), torch.get_num_threads()
    )
    return k, v


def _gather_kv_fake(
    k_pages: Tensor, v_pages: Tensor, block_table: Tensor, length: int
) -> tuple[Tensor, Tensor]:
    shape = (length, k_pages.shape[1], v_pages.shape[3])
    return k_pages.new_empty(shape), v_pages.new_empty(shape)


register(
    "gather_kv(Tensor k_pages, Tensor v_pages, Tensor block_table, int length) -> (Tensor, Tensor)",
    cpu=_gather_kv_cpu,
    fake=_gather_kv_fake,
)
