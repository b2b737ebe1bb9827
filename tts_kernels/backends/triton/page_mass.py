"""Computes each page's share of the softmax in a second pass over the keys, launched only on request."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...backends.launch import AttentionOptions, WorkLaunch, WorkLayout
from .chosen_pages import chosen_offset, list_chosen_pages
from .launch_config import COMPUTE, logit_factors
from .score_pages import normalize
from .tile_rows import load_queries, rows_of_tile


def page_mass(
    q: Tensor,
    k_pages: Tensor,
    launch: WorkLaunch,
    options: AttentionOptions,
    mask: Tensor | None,
    mass: Tensor,
    scales: Tensor | None = None,
) -> None:
    """Fills mass float32 [num_kv_heads, T, P], contiguous, for the same rows as the scores of `score_pages`.

    mask: int32 [num_kv_heads, T, W] of a `Selection`, contiguous; None: every page is read.
    scales: for 8-bit pages, float32 [num_pages, num_kv_heads, 2], contiguous.

    Allocates a temporary float32 [num_q_heads, T, P]; in a captured graph, from the graph's pool.
    """
    num_kv_heads, page_size, head_dim = k_pages.shape[1:]
    group = q.shape[1] // num_kv_heads
    columns = mass.shape[2]
    layout = WorkLayout.of(launch.capacity)
    logits = torch.full(
        (num_kv_heads, q.shape[0] * group, columns), -torch.inf, dtype=torch.float32, device=q.device
    )
    logit, factor = logit_factors(options)
    chosen = None if mask is None else list_chosen_pages(mask, launch, page_size, group)
    if launch.num_items > 0:
        _page_logits[(launch.num_items * num_kv_heads,)](
            q,
            k_pages,
            launch.work,
            logits,
            q.stride()[:2],
            k_pages.stride()[:3],
            (layout.query_order, layout.query_position, layout.pages),
            q.shape[0],
            (num_kv_heads, group),
            columns,
            logit,
            factor,
            options.window,
            chosen,
            scales,
            options.slopes,
            options.chunk,
            HEAD_DIM=head_dim,
            BLOCK_D=triton.next_power_of_2(head_dim),
            PAGE_SIZE=page_size,
            BLOCK_T=min(64, max(16, triton.next_power_of_2(page_size))),
            BLOCK_M=16,
            HAS_WINDOW=options.window > 0,
            HAS_CHUNK=options.chunk > 0,
            HAS_SOFT_CAP=options.soft_cap > 0,
            COMPUTE=COMPUTE[q.dtype],
        )
    normalize(logits, launch, page_size, group, mass, options.sinks)


@triton.jit(do_not_specialize=["num_q_rows", "columns", "window", "attention_chunk"])
def _page_logits(
    q_ptr,  # [num_q_rows, num_kv_heads * group, HEAD_DIM]
    k_ptr,  # [num_pages, num_kv_heads, PAGE_SIZE, HEAD_DIM]
    work_ptr,
    logits_ptr,  # [num_kv_heads, num_q_rows * group, columns]: log2 of the sum over a page's tokens
    q_strides,
    k_strides,
    offsets,  # of query_order, query_position and pages in the work list
    num_q_rows,
    heads,  # (num_kv_heads, group)
    columns,
    logit_factor,
    exponent_factor,
    window,
    chosen,  # ChosenPages, or None
    scales_ptr,  # [num_pages, num_kv_heads, 2], or None
    slopes_ptr,  # [num_kv_heads * group], or None
    attention_chunk,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_M: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_CHUNK: tl.constexpr,
    HAS_SOFT_CAP: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Program (item, KV head): its rows in steps of BLOCK_M, its pages one by one."""
    item = tl.program_id(0) // heads[0]
    kv_head = tl.program_id(0) % heads[0]
    if item >= tl.load(work_ptr):
        return
    record_ptr = work_ptr + 16 + item * 8
    group = heads[1]
    first_column = tl.load(record_ptr + 1) // PAGE_SIZE
    num_rows = tl.load(record_ptr + 5) - tl.load(record_ptr + 4)
    channel = tl.arange(0, BLOCK_D)
    in_head = channel < HEAD_DIM
    k_head_ptr = k_ptr + kv_head.to(tl.int64) * k_strides[1] + channel[None, :]
    if chosen is not None:
        pages_ptr = chosen[1] + chosen_offset(chosen, record_ptr, kv_head)
        num_pages = tl.load(chosen[2] + item * heads[0] + kv_head)
    else:
        pages_ptr = work_ptr + offsets[2] + tl.load(record_ptr)
        num_pages = tl.cdiv(tl.load(record_ptr + 2), PAGE_SIZE)
    for first_row in range(0, num_rows, BLOCK_M):
        row, live, query, q_row, head = rows_of_tile(
            work_ptr, record_ptr, first_row, offsets, num_q_rows, heads, kv_head, BLOCK_M
        )
        position = tl.load(work_ptr + offsets[1] + query, mask=live, other=-1)
        q = load_queries(q_ptr, q_strides, q_row, head, live, HEAD_DIM, BLOCK_D, COMPUTE)
        if slopes_ptr is not None:
            slope = tl.load(slopes_ptr + head, mask=live, other=0.0) * 1.4426950408889634
        head_row = kv_head.to(tl.int64) * num_q_rows + q_row
        to = (head_row * group + row % group) * columns
        for i in range(0, num_pages):
            page = tl.load(pages_ptr + i).to(tl.int64)
            index = i
            reads = live
            if chosen is not None:
                index = tl.load(pages_ptr + chosen[3] + i)
            column = first_column + index
            if chosen is not None:
                word = tl.load(chosen[0] + head_row * chosen[5] + column // 32, mask=live, other=0)
                reads = live & ((word >> (column % 32)) & 1 != 0)
            row_max = tl.full([BLOCK_M], -float("inf"), tl.float32)
            row_sum = tl.zeros([BLOCK_M], tl.float32)
            for start in range(0, PAGE_SIZE, BLOCK_T):
                slot = start + tl.arange(0, BLOCK_T)
                at = column * PAGE_SIZE + slot
                visible = (slot < PAGE_SIZE)[None, :] & (at[None, :] <= position[:, None]) & reads[:, None]
                if HAS_WINDOW:
                    visible = visible & (at[None, :] > (position - window)[:, None])
                if HAS_CHUNK:
                    visible = visible & (at[None, :] >= (position - position % attention_chunk)[:, None])
                visible = visible & (page >= 0)
                held = tl.max(visible.to(tl.int32), 0) != 0
                k_offset = page * k_strides[0] + slot.to(tl.int64) * k_strides[2]
                k_mask = held[:, None] & in_head[None, :]
                k = tl.load(k_head_ptr + k_offset[:, None], mask=k_mask, other=0.0).to(COMPUTE)
                s = tl.dot(q, k.T, input_precision="ieee")
                if scales_ptr is not None:
                    s = s * tl.load(scales_ptr + (page * heads[0] + kv_head) * 2, mask=page >= 0, other=0.0)
                if HAS_SOFT_CAP:
                    s = 1 - 2 / (tl.exp2(s * logit_factor) + 1)  # tanh, without inf / inf
                s = s * exponent_factor
                if slopes_ptr is not None:
                    s += (at[None, :] - position[:, None]).to(tl.float32) * slope[:, None]
                s = tl.where(visible, s, -float("inf"))
                new_max = tl.maximum(row_max, tl.max(s, 1))
                shift = tl.where(new_max == -float("inf"), 0.0, new_max)
                row_sum = row_sum * tl.exp2(row_max - shift) + tl.sum(tl.exp2(s - shift[:, None]), 1)
                row_max = new_max
            tl.store(logits_ptr + to + column, row_max + tl.log2(row_sum), mask=row_sum > 0)
