"""Writes new keys and values into 8-bit pages, which have a scale for each page and KV head."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# The largest value of a page is scaled to this one.
LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}


def append_scaled(
    k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, slots: Tensor, scales: Tensor
) -> None:
    """Writes tokens into 8-bit pages.

    The tokens of a page are consecutive in the call and in slot order, as from `KVTree.append`.
    scales: float32 [num_pages, num_kv_heads, 2], contiguous, of K and V.

    A page that starts over at slot 0 takes the scale that its largest value needs. If later tokens need a
    larger one, the page's earlier tokens are quantized again. A NaN or an infinity makes the scale NaN until
    the page starts over.
    """
    num_pages, num_kv_heads, page_size, head_dim = k_pages.shape
    if slots.shape[0] == 0:
        return
    block_t, block_d = triton.next_power_of_2(page_size), triton.next_power_of_2(head_dim)
    _append[(slots.shape[0], num_kv_heads)](
        k,
        v,
        k_pages,
        v_pages,
        slots,
        scales,
        k.stride()[:2],
        v.stride()[:2],
        k_pages.stride()[:3],
        v_pages.stride()[:3],
        num_pages * page_size,
        slots.shape[0],
        LARGEST=LARGEST[k_pages.dtype],
        PAGE_SIZE=page_size,
        HEAD_DIM=head_dim,
        BLOCK_T=block_t,
        BLOCK_D=block_d,
        num_warps=max(1, min(16, block_t * block_d // 512)),
    )


@triton.jit(do_not_specialize=["num_tokens"])
def _append(
    k_ptr,  # [num_tokens, num_kv_heads, HEAD_DIM]
    v_ptr,
    k_pages_ptr,  # [num_pages, num_kv_heads, PAGE_SIZE, HEAD_DIM]
    v_pages_ptr,
    slots_ptr,
    scales_ptr,  # [num_pages, num_kv_heads, 2]
    k_strides,
    v_strides,
    k_page_strides,
    v_page_strides,
    num_slots,
    num_tokens,
    LARGEST: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Program (token, KV head). Only the program of a page's last new token does work."""
    token = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    slot = tl.load(slots_ptr + token)
    if (slot < 0) | (slot >= num_slots):
        return
    page = slot // PAGE_SIZE
    after = tl.load(slots_ptr + token + 1, mask=token + 1 < num_tokens, other=-1)
    if (after == slot + 1) & (after // PAGE_SIZE == page):
        return
    last = slot % PAGE_SIZE
    at = tl.arange(0, BLOCK_T)
    source = token - (last - at)
    from_slot = tl.load(slots_ptr + source, mask=(at <= last) & (source >= 0), other=-1)
    is_new = (at <= last) & (from_slot == page * PAGE_SIZE + at)
    scale_ptr = scales_ptr + (page.to(tl.int64) * tl.num_programs(1) + head) * 2
    _append_page(
        k_ptr + head * k_strides[1], k_strides[0], source, is_new, at, last,
        k_pages_ptr + page.to(tl.int64) * k_page_strides[0] + head * k_page_strides[1], k_page_strides[2],
        scale_ptr, LARGEST, HEAD_DIM, BLOCK_T, BLOCK_D,
    )  # fmt: skip
    _append_page(
        v_ptr + head * v_strides[1], v_strides[0], source, is_new, at, last,
        v_pages_ptr + page.to(tl.int64) * v_page_strides[0] + head * v_page_strides[1], v_page_strides[2],
        scale_ptr + 1, LARGEST, HEAD_DIM, BLOCK_T, BLOCK_D,
    )  # fmt: skip


@triton.jit
def _append_page(
    rows_ptr, row_stride, source, is_new, at, last, page_ptr, slot_stride, scale_ptr,
    LARGEST: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Writes K or V of one page and head: all slots up to `last`, new and old."""
    channel = tl.arange(0, BLOCK_D)
    in_head = (channel < HEAD_DIM)[None, :]
    is_old = (at <= last) & (is_new == 0)
    from_ptr = rows_ptr + source.to(tl.int64)[:, None] * row_stride + channel[None, :]
    to_ptr = page_ptr + at.to(tl.int64)[:, None] * slot_stride + channel[None, :]
    x = tl.load(from_ptr, mask=is_new[:, None] & in_head, other=0.0).to(tl.float32)
    stored = tl.load(to_ptr, mask=is_old[:, None] & in_head, other=0.0).to(tl.float32)
    before = tl.load(scale_ptr)
    needed = tl.div_rn(tl.max(tl.max(tl.abs(x), 1), 0), LARGEST)
    needed = tl.where(needed < 1.1754943508222875e-38, 0.0, needed)  # no normal float32
    keeps = tl.max(tl.max(tl.abs(stored), 1), 0) > 0  # else any scale fits what is there
    scale = tl.maximum(tl.where(keeps, before, 0.0), needed)
    scale = tl.where(scale > 0, scale, 1.0)
    value = tl.where(is_new[:, None], x, tl.where(keeps, before, 0.0) * stored)
    value = tl.div_rn(value, tl.zeros([BLOCK_T, BLOCK_D], tl.float32) + scale)
    if LARGEST == 127:
        value = (value + 12582912.0) - 12582912.0  # 1.5 * 2**23: rounds half to even
    # x - x is not 0 for a NaN or an infinity: in a new value, or in the scale that an earlier one left.
    has_old = tl.max(is_old.to(tl.int32), 0) > 0
    broken = (tl.max(tl.max((x - x != 0).to(tl.int32), 1), 0) > 0) | ((before - before != 0) & has_old)
    tl.store(scale_ptr, tl.where(broken, float("nan"), scale))
    value = tl.where(broken, 0.0, value)
    tl.store(to_ptr, value.to(page_ptr.dtype.element_ty), mask=(at <= last)[:, None] & in_head)
