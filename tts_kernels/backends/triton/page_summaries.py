"""Computes summaries of the pages that an append wrote to."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

# Elements of a block: each thread of 4 warps moves 16 bytes of bfloat16 per instruction, four times.
BLOCK = 4096
# Slots compared at once to find the last token of a page.
SLOTS = 1024


def summarize_pages(k_pages: Tensor, slots: Tensor, summaries: Tensor, scales: Tensor | None = None) -> None:
    """Computes the summaries of the pages that hold `slots`, from a page's first slot to the last of these.

    summaries: [num_pages, num_kv_heads, S, head_dim], contiguous. Launched after `append_kv`.
    scales: for 8-bit pages, float32 [num_pages, num_kv_heads, 2], contiguous.
    """
    num_pages, num_kv_heads, page_size, head_dim = k_pages.shape
    tokens = slots.shape[0]
    if tokens == 0:
        return
    block_d = triton.next_power_of_2(head_dim)
    _summarize[(tokens, num_kv_heads)](
        k_pages,
        slots,
        summaries,
        k_pages.stride()[:3],
        num_pages * page_size,
        tokens,
        scales,
        PAGE_SIZE=page_size,
        HEAD_DIM=head_dim,
        MINMAX=summaries.shape[2] == 2,
        BLOCK_T=min(triton.next_power_of_2(page_size), BLOCK // block_d),
        BLOCK_D=block_d,
        SLOTS=min(SLOTS, triton.next_power_of_2(tokens)),
    )


@triton.jit(do_not_specialize=["num_tokens"])
def _summarize(
    k_ptr,  # [num_pages, num_kv_heads, PAGE_SIZE, HEAD_DIM]
    slots_ptr,  # [num_tokens]
    summaries_ptr,  # [num_pages, num_kv_heads, 2 if MINMAX else 1, HEAD_DIM]
    k_strides,
    num_slots,
    num_tokens,
    scales_ptr,  # [num_pages, num_kv_heads, 2], or None
    PAGE_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    MINMAX: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """Program (token, KV head). Only the program whose token has the last slot of its page does work."""
    token = tl.program_id(0)
    slot = tl.load(slots_ptr + token)
    if (slot < 0) | (slot >= num_slots):
        return
    page = slot // PAGE_SIZE
    if PAGE_SIZE > 1:
        # Usually the next token follows in the page, and nothing else needs to be read.
        after = tl.load(slots_ptr + token + 1, mask=token + 1 < num_tokens, other=-1)
        if (after == slot + 1) & (after // PAGE_SIZE == page):
            return
        last = slot
        for start in range(0, num_tokens, SLOTS):
            other = start + tl.arange(0, SLOTS)
            others = tl.load(slots_ptr + other, mask=other < num_tokens, other=-1)
            same = (others >= 0) & (others // PAGE_SIZE == page)
            last = tl.maximum(last, tl.max(tl.where(same, others, -1), 0))
        if last != slot:
            return
    head = tl.program_id(1).to(tl.int64)
    count = slot % PAGE_SIZE + 1
    channel = tl.arange(0, BLOCK_D)
    in_head = channel < HEAD_DIM
    head_ptr = k_ptr + page.to(tl.int64) * k_strides[0] + head * k_strides[1] + channel[None, :]
    to = summaries_ptr + (page.to(tl.int64) * tl.num_programs(1) + head) * ((1 + MINMAX) * HEAD_DIM) + channel
    scale = 1.0
    if scales_ptr is not None:
        scale = tl.load(scales_ptr + (page.to(tl.int64) * tl.num_programs(1) + head) * 2)
    if MINMAX:
        least = tl.full([BLOCK_D], float("inf"), tl.float32)
        most = tl.full([BLOCK_D], -float("inf"), tl.float32)
        for start in range(0, count, BLOCK_T):
            k, held = _keys(head_ptr, k_strides[2], start, count, in_head, BLOCK_T)
            least = tl.minimum(least, tl.min(tl.where(held, k, float("inf")), 0))
            most = tl.maximum(most, tl.max(tl.where(held, k, -float("inf")), 0))
        tl.store(to, (least * scale).to(summaries_ptr.dtype.element_ty), mask=in_head)
        tl.store(to + HEAD_DIM, (most * scale).to(summaries_ptr.dtype.element_ty), mask=in_head)
    else:
        total = tl.zeros([BLOCK_D], tl.float32)
        for start in range(0, count, BLOCK_T):
            k, held = _keys(head_ptr, k_strides[2], start, count, in_head, BLOCK_T)
            total += tl.sum(tl.where(held, k, 0.0), 0)
        tl.store(to, (total * scale / count).to(summaries_ptr.dtype.element_ty), mask=in_head)


@triton.jit
def _keys(head_ptr, stride, start, count, in_head, BLOCK_T: tl.constexpr):
    """Returns the float32 keys of BLOCK_T slots of a page from `start` on, and a mask of those that exist."""
    slot = start + tl.arange(0, BLOCK_T)
    held = (slot < count)[:, None] & in_head[None, :]
    return tl.load(head_ptr + slot.to(tl.int64)[:, None] * stride, mask=held, other=0.0).to(tl.float32), held
