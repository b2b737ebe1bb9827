"""Finds the rows of a tile (pairs of query and head) and their queries, for kernels over a work list."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rows_of_tile(work_ptr, record_ptr, first_row, offsets, num_q_rows, heads, kv_head, BLOCK_M: tl.constexpr):
    """For BLOCK_M rows of an item: number, whether item and q have the row, query, row of q, query head."""
    group = heads[1]
    row = tl.load(record_ptr + 4) + first_row + tl.arange(0, BLOCK_M)
    in_item = row < tl.load(record_ptr + 5)
    query = row // group
    q_row = tl.load(work_ptr + offsets[0] + query, mask=in_item, other=num_q_rows)
    return row, q_row < num_q_rows, query, q_row.to(tl.int64), kv_head * group + row % group


@triton.jit
def load_queries(
    q_ptr, q_strides, q_row, head, live, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, COMPUTE: tl.constexpr
):
    """Loads [rows, BLOCK_D] from q [num_q_rows, num_q_heads, HEAD_DIM] at int64 q_row; 0 where not live."""
    channel = tl.arange(0, BLOCK_D)
    offset = q_row * q_strides[0] + head.to(tl.int64) * q_strides[1]
    mask = live[:, None] & (channel < HEAD_DIM)[None, :]
    return tl.load(q_ptr + offset[:, None] + channel[None, :], mask=mask, other=0.0).to(COMPUTE)
