"""Copies whole pages, all pairs and layers in one launch."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

# Elements of a block: each thread of 4 warps moves 16 bytes of bfloat16 per instruction, four times.
BLOCK = 4096


def copy_pages(k_pages: Tensor, v_pages: Tensor, copies: Tensor) -> None:
    num_layers, num_pages, num_kv_heads, page_size, head_dim = k_pages.shape
    if copies.shape[0] == 0:
        return
    block_d = triton.next_power_of_2(head_dim)
    _copy[(copies.shape[0], num_layers * num_kv_heads)](
        k_pages,
        v_pages,
        copies,
        k_pages.stride()[:4],
        v_pages.stride()[:4],
        num_pages,
        num_kv_heads,
        PAGE_SIZE=page_size,
        HEAD_DIM=head_dim,
        BLOCK_T=min(triton.next_power_of_2(page_size), BLOCK // block_d),
        BLOCK_D=block_d,
    )


@triton.jit
def _copy(
    k_ptr,  # [num_layers, num_pages, num_kv_heads, PAGE_SIZE, HEAD_DIM]
    v_ptr,
    copies_ptr,
    k_strides,
    v_strides,
    num_pages,
    num_kv_heads,
    PAGE_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Program (pair, layer and KV head)."""
    pair = tl.program_id(0)
    source = tl.load(copies_ptr + 2 * pair).to(tl.int64)
    target = tl.load(copies_ptr + 2 * pair + 1).to(tl.int64)
    if (source < 0) | (source >= num_pages) | (target < 0) | (target >= num_pages):
        return
    layer = (tl.program_id(1) // num_kv_heads).to(tl.int64)
    head = (tl.program_id(1) % num_kv_heads).to(tl.int64)
    channel = tl.arange(0, BLOCK_D)
    k_head_ptr = k_ptr + layer * k_strides[0] + head * k_strides[2] + channel[None, :]
    v_head_ptr = v_ptr + layer * v_strides[0] + head * v_strides[2] + channel[None, :]
    for start in range(0, PAGE_SIZE, BLOCK_T):
        token = start + tl.arange(0, BLOCK_T)
        mask = (token < PAGE_SIZE)[:, None] & (channel < HEAD_DIM)[None, :]
        k_token_ptr = k_head_ptr + token.to(tl.int64)[:, None] * k_strides[3]
        v_token_ptr = v_head_ptr + token.to(tl.int64)[:, None] * v_strides[3]
        k = tl.load(k_token_ptr + source * k_strides[1], mask=mask)
        v = tl.load(v_token_ptr + source * v_strides[1], mask=mask)
        tl.store(k_token_ptr + target * k_strides[1], k, mask=mask)
        tl.store(v_token_ptr + target * v_strides[1], v, mask=mask)
