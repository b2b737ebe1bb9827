"""Lists the pages that any row of an item chose: the pages that sparse attention reads."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...backends.launch import WorkLaunch, WorkLayout

# Tiles of one run of pages begin at least this many rows apart, so each has its own list.
_TILE_ROWS = 64


class ChosenPages(NamedTuple):
    """For each KV head and item, the pages that any of its rows chose, in path order.

    The pages of an item are the first counts[item, kv_head] of entries[:, kv_head, row_begin // 64,
    page_offset :].
    """

    mask: Tensor  # int32 [num_kv_heads, T, words]
    entries: Tensor  # int32 [2, num_kv_heads, tiles, pages]: physical page, and its number in the item
    counts: Tensor  # int32 [items, num_kv_heads]
    entry_stride: int  # num_kv_heads * tiles * pages
    sizes: tuple[int, int]  # (tiles, pages)
    words: int


def list_chosen_pages(mask: Tensor, launch: WorkLaunch, page_size: int, group: int) -> ChosenPages:
    """Launches the kernel that makes the lists.

    Allocates the lists; in a captured graph, from the graph's pool. Their sizes depend on the capacity and T
    only, as a CUDA graph needs.
    """
    num_kv_heads, rows, words = mask.shape
    capacity, layout = launch.capacity, WorkLayout.of(launch.capacity)
    tiles = triton.cdiv(capacity.queries * group, _TILE_ROWS)
    entries = torch.empty((2, num_kv_heads, tiles, capacity.pages), dtype=torch.int32, device=mask.device)
    counts = torch.empty((capacity.items, num_kv_heads), dtype=torch.int32, device=mask.device)
    chosen = ChosenPages(mask, entries, counts, entries[0].numel(), (tiles, capacity.pages), words)
    if launch.num_items > 0:
        _list[(launch.num_items * num_kv_heads,)](
            launch.work,
            chosen,
            (layout.query_order, layout.query_position, layout.pages),
            rows,
            (num_kv_heads, group),
            PAGE_SIZE=page_size,
            BLOCK_Q=16,
            BLOCK_C=64,
        )
    return chosen


@triton.jit
def chosen_offset(chosen, record_ptr, kv_head):
    """Returns where the list of an item begins in the entries."""
    tile = kv_head.to(tl.int64) * chosen[4][0] + tl.load(record_ptr + 4) // 64
    return tile * chosen[4][1] + tl.load(record_ptr)


@triton.jit(do_not_specialize=["num_q_rows"])
def _list(
    work_ptr,
    chosen,  # ChosenPages
    offsets,  # of query_order, query_position and pages in the work list
    num_q_rows,
    heads,  # (num_kv_heads, group)
    PAGE_SIZE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Program (item, KV head)."""
    item = tl.program_id(0) // heads[0]
    kv_head = tl.program_id(0) % heads[0]
    if item >= tl.load(work_ptr):
        return
    record_ptr = work_ptr + 16 + item * 8
    pages_ptr = work_ptr + offsets[2] + tl.load(record_ptr)
    first_column = tl.load(record_ptr + 1) // PAGE_SIZE
    num_pages = tl.cdiv(tl.load(record_ptr + 2), PAGE_SIZE)
    first_query = tl.load(record_ptr + 4) // heads[1]
    query_end = tl.cdiv(tl.load(record_ptr + 5), heads[1])
    to_ptr = chosen[1] + chosen_offset(chosen, record_ptr, kv_head)
    count = 0
    for start in range(0, num_pages, BLOCK_C):
        index = start + tl.arange(0, BLOCK_C)
        column = first_column + index
        page = tl.load(pages_ptr + index, mask=index < num_pages, other=-1)
        wanted = tl.zeros([BLOCK_C], tl.int32)
        for first in range(first_query, query_end, BLOCK_Q):
            query = first + tl.arange(0, BLOCK_Q)
            q_row = tl.load(work_ptr + offsets[0] + query, mask=query < query_end, other=num_q_rows)
            live = q_row < num_q_rows
            position = tl.load(work_ptr + offsets[1] + query, mask=live, other=-1)
            row_ptr = chosen[0] + (kv_head.to(tl.int64) * num_q_rows + q_row) * chosen[5]
            seen = (column * PAGE_SIZE)[None, :] <= position[:, None]
            mask = seen & (page >= 0)[None, :]
            word = tl.load(row_ptr[:, None] + column[None, :] // 32, mask=mask, other=0)
            wanted = wanted | tl.max((word >> (column % 32)[None, :]) & 1, 0)
        place = count + tl.cumsum(wanted, 0) - wanted
        tl.store(to_ptr + place, page, mask=wanted != 0)
        tl.store(to_ptr + chosen[3] + place, index, mask=wanted != 0)
        count += tl.sum(wanted, 0)
    tl.store(chosen[2] + item * heads[0] + kv_head, count)


@triton.jit
def chosen_bits(words_ptr, column, mask):
    """[rows, columns]: whether each row reads each column, where the mask allows it; 0 elsewhere."""
    word = tl.load(words_ptr[:, None] + column[None, :] // 32, mask=mask, other=0)
    return (word >> (column % 32)[None, :]) & 1
