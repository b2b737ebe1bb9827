"""Writes new keys and values into their page slots."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

# Elements of a block: each thread of 4 warps moves 16 bytes of bfloat16 per instruction, four times.
BLOCK = 4096


def append_kv(k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, slots: Tensor) -> None:
    num_pages, num_kv_heads, page_size, head_dim = k_pages.shape
    if slots.shape[0] == 0:
        return
    block_d = triton.next_power_of_2(head_dim)
    block_h = min(triton.next_power_of_2(num_kv_heads), BLOCK // block_d)
    _append[(slots.shape[0], triton.cdiv(num_kv_heads, block_h))](
        k,
        v,
        k_pages,
        v_pages,
        slots,
        k.stride()[:2],
        v.stride()[:2],
        k_pages.stride()[:3],
        v_pages.stride()[:3],
        num_pages * page_size,
        num_kv_heads,
        PAGE_SIZE=page_size,
        HEAD_DIM=head_dim,
        BLOCK_H=block_h,
        BLOCK_D=block_d,
    )


@triton.jit
def _append(
    k_ptr,  # [T, num_kv_heads, HEAD_DIM]
    v_ptr,
    k_pages_ptr,  # [num_pages, num_kv_heads, PAGE_SIZE, HEAD_DIM]
    v_pages_ptr,
    slots_ptr,
    k_strides,
    v_strides,
    k_page_strides,
    v_page_strides,
    num_slots,
    num_kv_heads,
    PAGE_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Program (token, block of heads)."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + token)
    if (slot < 0) | (slot >= num_slots):
        return
    page = (slot // PAGE_SIZE).to(tl.int64)
    offset = (slot % PAGE_SIZE).to(tl.int64)
    head = (tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)).to(tl.int64)
    channel = tl.arange(0, BLOCK_D)
    mask = (head < num_kv_heads)[:, None] & (channel < HEAD_DIM)[None, :]

    k_from = k_ptr + token * k_strides[0] + head[:, None] * k_strides[1] + channel[None, :]
    v_from = v_ptr + token * v_strides[0] + head[:, None] * v_strides[1] + channel[None, :]
    k = tl.load(k_from, mask=mask)
    v = tl.load(v_from, mask=mask)
    k_slot_ptr = k_pages_ptr + page * k_page_strides[0] + offset * k_page_strides[2]
    v_slot_ptr = v_pages_ptr + page * v_page_strides[0] + offset * v_page_strides[2]
    tl.store(k_slot_ptr + head[:, None] * k_page_strides[1] + channel[None, :], k, mask=mask)
    tl.store(v_slot_ptr + head[:, None] * v_page_strides[1] + channel[None, :], v, mask=mask)
