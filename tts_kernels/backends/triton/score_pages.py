"""Estimates shares of pages from their summaries: one launch over the work list, one to normalise."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...backends.launch import WorkLaunch, WorkLayout
from .launch_config import COMPUTE, LOG2_E
from .tile_rows import load_queries, rows_of_tile

# Pages of a step: two products of 64 rows with 64 summaries of 128 channels fit the registers of 4 warps.
BLOCK_P = 64
# Columns that are normalised at once, for all heads of a group.
BLOCK_C = 1024


def score_pages(
    q: Tensor, summaries: Tensor, launch: WorkLaunch, page_size: int, scale: float, scores: Tensor
) -> None:
    """Fills scores float32 [num_kv_heads, T, P], contiguous: T rows of q, P = max_columns of the plan.

    Args:
        q: [T, num_q_heads, head_dim].
        summaries: [num_pages, num_kv_heads, S, head_dim], contiguous; S = 1: means, S = 2: minima and maxima.

    Rows of q that the work list does not have are 0 up to capacity.queries, and left unchanged from there on.
    Each summary is read once for all rows of an item. Allocates a temporary float32 [num_q_heads, T, P]; in a
    captured graph, from the graph's pool.
    """
    num_kv_heads, vectors, head_dim = summaries.shape[1:]
    group = q.shape[1] // num_kv_heads
    columns = scores.shape[2]
    block_d = triton.next_power_of_2(head_dim)
    logits = torch.empty((num_kv_heads, q.shape[0] * group, columns), dtype=torch.float32, device=q.device)
    layout = WorkLayout.of(launch.capacity)
    if launch.num_items > 0:
        _score[(launch.num_items * num_kv_heads,)](
            q,
            summaries,
            launch.work,
            logits,
            q.stride()[:2],
            (layout.query_order, layout.query_position, layout.pages),
            q.shape[0],
            (num_kv_heads, group),
            columns,
            scale * LOG2_E,
            MINMAX=vectors == 2,
            HEAD_DIM=head_dim,
            BLOCK_D=block_d,
            PAGE_SIZE=page_size,
            BLOCK_P=BLOCK_P if block_d <= 64 else BLOCK_P // 2,
            TALL=64 if q.element_size() == 2 else 16,
            COMPUTE=COMPUTE[q.dtype],
            num_warps=4 if block_d <= 128 else 8,
            num_stages=2,
        )
    normalize(logits, launch, page_size, group, scores)


def normalize(
    logits: Tensor,
    launch: WorkLaunch,
    page_size: int,
    group: int,
    scores: Tensor,
    sinks: Tensor | None = None,
) -> None:
    """Computes the softmax of logits [num_kv_heads, T * group, P] over visible columns; means over the group.

    logits: over ln 2. sinks: float32 [num_kv_heads * group], one natural logit per head beside its columns.
    """
    num_kv_heads, rows, columns = scores.shape
    layout = WorkLayout.of(launch.capacity)
    _normalize[(launch.capacity.queries, num_kv_heads)](
        logits,
        launch.work,
        scores,
        (layout.query_order, layout.query_position),
        rows,
        columns,
        sinks,
        PAGE_SIZE=page_size,
        GROUP=group,
        BLOCK_G=triton.next_power_of_2(group),
        BLOCK_C=min(triton.next_power_of_2(columns), BLOCK_C),
    )


@triton.jit(do_not_specialize=["num_q_rows", "columns"])
def _score(
    q_ptr,  # [num_q_rows, num_kv_heads * group, HEAD_DIM]
    summaries_ptr,  # [num_pages, num_kv_heads, 2 if MINMAX else 1, HEAD_DIM]
    work_ptr,
    logits_ptr,  # [num_kv_heads, num_q_rows * group, columns], over ln 2
    q_strides,
    offsets,  # of query_order, query_position and pages in the work list
    num_q_rows,
    heads,  # (num_kv_heads, group)
    columns,
    factor,
    MINMAX: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    TALL: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Program (item, KV head)."""
    item = tl.program_id(0) // heads[0]
    kv_head = tl.program_id(0) % heads[0]
    if item >= tl.load(work_ptr):
        return
    record_ptr = work_ptr + 16 + item * 8
    if TALL > 16 and tl.load(record_ptr + 7) > 16:
        _score_rows(
            q_ptr, summaries_ptr, work_ptr, logits_ptr, q_strides, offsets, num_q_rows, heads, columns,
            factor, record_ptr, kv_head, MINMAX, HEAD_DIM, BLOCK_D, PAGE_SIZE, BLOCK_P, COMPUTE, TALL,
        )  # fmt: skip
    else:
        _score_rows(
            q_ptr, summaries_ptr, work_ptr, logits_ptr, q_strides, offsets, num_q_rows, heads, columns,
            factor, record_ptr, kv_head, MINMAX, HEAD_DIM, BLOCK_D, PAGE_SIZE, BLOCK_P, COMPUTE, 16,
        )  # fmt: skip


@triton.jit
def _score_rows(
    q_ptr, summaries_ptr, work_ptr, logits_ptr, q_strides, offsets, num_q_rows, heads, columns,
    factor, record_ptr, kv_head,
    MINMAX: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Scores the rows of an item in steps of BLOCK_M over its pages in steps of BLOCK_P."""
    group = heads[1]
    pages_ptr = work_ptr + offsets[2] + tl.load(record_ptr)
    first_column = tl.load(record_ptr + 1) // PAGE_SIZE
    num_pages = tl.cdiv(tl.load(record_ptr + 2), PAGE_SIZE)
    num_rows = tl.load(record_ptr + 5) - tl.load(record_ptr + 4)
    channel = tl.arange(0, BLOCK_D)
    in_head = channel < HEAD_DIM
    for first_row in range(0, num_rows, BLOCK_M):
        row, live, query, q_row, head = rows_of_tile(
            work_ptr, record_ptr, first_row, offsets, num_q_rows, heads, kv_head, BLOCK_M
        )
        position = tl.load(work_ptr + offsets[1] + query, mask=live, other=-1)
        q = load_queries(q_ptr, q_strides, q_row, head, live, HEAD_DIM, BLOCK_D, COMPUTE)
        to = (kv_head.to(tl.int64) * num_q_rows + q_row) * group + row % group
        for start in range(0, num_pages, BLOCK_P):
            index = start + tl.arange(0, BLOCK_P)
            page = tl.load(pages_ptr + index, mask=index < num_pages, other=-1)
            held = page >= 0
            summary = (page.to(tl.int64) * heads[0] + kv_head) * ((1 + MINMAX) * HEAD_DIM)
            from_ptr = summaries_ptr + summary[:, None] + channel[None, :]
            mask = held[:, None] & in_head[None, :]
            first = tl.load(from_ptr, mask=mask, other=0.0).to(COMPUTE)
            if MINMAX:
                # The bound: per channel, the largest product of q with a key between minimum and maximum.
                second = tl.load(from_ptr + HEAD_DIM, mask=mask, other=0.0).to(COMPUTE)
                zero = tl.zeros([BLOCK_M, BLOCK_D], COMPUTE)
                s = tl.dot(tl.minimum(q, zero), first.T, input_precision="ieee")
                s = tl.dot(tl.maximum(q, zero), second.T, s, input_precision="ieee")
            else:
                s = tl.dot(q, first.T, input_precision="ieee")
            column = first_column + index
            seen = tl.minimum(position[:, None] + 1 - column[None, :] * PAGE_SIZE, PAGE_SIZE)
            visible = (seen > 0) & (index < num_pages)[None, :]
            s = s * factor + tl.log2(tl.maximum(seen, 1).to(tl.float32))
            s = tl.where(held[None, :], s, -float("inf"))
            tl.store(logits_ptr + to[:, None] * columns + column[None, :], s, mask=visible)


@triton.jit(do_not_specialize=["num_q_rows", "columns"])
def _normalize(
    logits_ptr,  # [num_kv_heads, num_q_rows * GROUP, columns], over ln 2; read where the row sees the column
    work_ptr,
    scores_ptr,  # [num_kv_heads, num_q_rows, columns]
    offsets,  # of query_order and query_position in the work list
    num_q_rows,
    columns,
    sinks_ptr,  # [num_kv_heads * GROUP], natural logits, or None
    PAGE_SIZE: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Program (query, KV head). Past the planned queries, query i is row i of q and sees nothing."""
    query = tl.program_id(0)
    planned = query < tl.load(work_ptr + 1)
    q_row = tl.load(work_ptr + offsets[0] + query, mask=planned, other=query).to(tl.int64)
    if q_row >= num_q_rows:
        return
    position = tl.load(work_ptr + offsets[1] + query, mask=planned, other=-1)
    seen = (position + PAGE_SIZE) // PAGE_SIZE
    member = tl.arange(0, BLOCK_G)
    score_row = tl.program_id(1).to(tl.int64) * num_q_rows + q_row
    from_ptr = logits_ptr + (score_row * GROUP + member)[:, None] * columns
    row_max = tl.full([BLOCK_G], -float("inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_G], tl.float32)
    for start in range(0, seen, BLOCK_C):
        column = start + tl.arange(0, BLOCK_C)
        mask = (member < GROUP)[:, None] & (column < seen)[None, :]
        s = tl.load(from_ptr + column[None, :], mask=mask, other=-float("inf"))
        new_max = tl.maximum(row_max, tl.max(s, 1))
        shift = tl.where(new_max == -float("inf"), 0.0, new_max)
        row_sum = row_sum * tl.exp2(row_max - shift) + tl.sum(tl.exp2(s - shift[:, None]), 1)
        row_max = new_max
    if sinks_ptr is not None:
        head = tl.program_id(1) * GROUP + member
        sink = tl.load(sinks_ptr + head, mask=member < GROUP, other=-float("inf")) * 1.4426950408889634
        new_max = tl.maximum(row_max, sink)
        shift = tl.where(new_max == -float("inf"), 0.0, new_max)
        row_sum = row_sum * tl.exp2(row_max - shift) + tl.exp2(sink - shift)
        row_max = new_max
    shift = tl.where(row_max == -float("inf"), 0.0, row_max)
    weight = 1 / (tl.where(row_sum == 0, 1.0, row_sum) * GROUP)
    for start in range(0, columns, BLOCK_C):
        column = start + tl.arange(0, BLOCK_C)
        mask = (member < GROUP)[:, None] & (column < seen)[None, :]
        s = tl.load(from_ptr + column[None, :], mask=mask, other=-float("inf"))
        share = tl.sum(tl.exp2(s - shift[:, None]) * weight[:, None], 0)
        tl.store(scores_ptr + score_row * columns + column, share, mask=column < columns)
