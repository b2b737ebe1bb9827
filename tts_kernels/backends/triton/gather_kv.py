"""Reads a branch's keys and values back as plain tensors."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

# Elements of a block: each thread of 4 warps moves 16 bytes of bfloat16 per instruction, four times.
BLOCK = 4096


def gather_kv(
    k_pages: Tensor,
    v_pages: Tensor,
    block_table: Tensor,
    k_out: Tensor,
    v_out: Tensor,
    scales: Tensor | None = None,
) -> None:
    """Fills k_out and v_out [length, num_kv_heads, head_dim], contiguous; NaN where a page does not exist.

    scales: for 8-bit pages, float32 [num_pages, num_kv_heads, 2], contiguous.
    """
    num_pages, num_kv_heads, page_size, head_dim = k_pages.shape
    length = k_out.shape[0]
    if length == 0:
        return
    block_d = triton.next_power_of_2(head_dim)
    block_t = BLOCK // block_d
    _gather[(triton.cdiv(length, block_t), num_kv_heads)](
        k_pages,
        v_pages,
        block_table,
        k_out,
        v_out,
        k_pages.stride()[:3],
        v_pages.stride()[:3],
        num_pages,
        length,
        scales,
        PAGE_SIZE=page_size,
        HEAD_DIM=head_dim,
        BLOCK_T=block_t,
        BLOCK_D=block_d,
    )


@triton.jit(do_not_specialize=["length"])
def _gather(
    k_pages_ptr,  # [num_pages, num_kv_heads, PAGE_SIZE, HEAD_DIM]
    v_pages_ptr,
    table_ptr,
    k_ptr,  # [length, num_kv_heads, HEAD_DIM]
    v_ptr,
    k_strides,
    v_strides,
    num_pages,
    length,
    scales_ptr,  # [num_pages, num_kv_heads, 2], or None
    PAGE_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Program (block of tokens, KV head)."""
    head = tl.program_id(1).to(tl.int64)
    num_kv_heads = tl.num_programs(1)
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    wanted = token < length
    page = tl.load(table_ptr + token // PAGE_SIZE, mask=wanted, other=-1).to(tl.int64)
    exists = (page >= 0) & (page < num_pages)
    slot = (token % PAGE_SIZE).to(tl.int64)
    channel = tl.arange(0, BLOCK_D)
    in_head = (channel < HEAD_DIM)[None, :]

    k_offset = page * k_strides[0] + head * k_strides[1] + slot * k_strides[2]
    v_offset = page * v_strides[0] + head * v_strides[1] + slot * v_strides[2]
    mask = exists[:, None] & in_head
    k_from = k_pages_ptr + k_offset[:, None] + channel[None, :]
    v_from = v_pages_ptr + v_offset[:, None] + channel[None, :]
    if scales_ptr is None:
        k = tl.load(k_from, mask=mask, other=float("nan"))
        v = tl.load(v_from, mask=mask, other=float("nan"))
    else:
        scale_ptr = scales_ptr + (page * num_kv_heads + head) * 2
        k_scale = tl.load(scale_ptr, mask=exists, other=float("nan"))
        v_scale = tl.load(scale_ptr + 1, mask=exists, other=float("nan"))
        k = tl.load(k_from, mask=mask, other=0.0).to(tl.float32) * k_scale[:, None]
        v = tl.load(v_from, mask=mask, other=0.0).to(tl.float32) * v_scale[:, None]
    row = (token.to(tl.int64) * num_kv_heads + head)[:, None] * HEAD_DIM + channel[None, :]
    tl.store(k_ptr + row, k, mask=wanted[:, None] & in_head)
    tl.store(v_ptr + row, v, mask=wanted[:, None] & in_head)
