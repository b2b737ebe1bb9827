"""Attention over a work list (csrc/common/work_records.h): one launch for its items, one to merge."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ...backends.launch import AttentionOptions, WorkLaunch, WorkLayout
from .chosen_pages import chosen_bits, chosen_offset, list_chosen_pages
from .launch_config import COMPUTE, launch_config, logit_factors
from .sinks import with_sinks
from .tile_rows import load_queries, rows_of_tile


def tree_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    launch: WorkLaunch,
    options: AttentionOptions,
    out: Tensor,
    lse: Tensor,
    mask: Tensor | None = None,
    scales: Tensor | None = None,
) -> None:
    """Writes out and lse, both contiguous [T, ...] with one row for each row of q.

    mask: int32 [num_kv_heads, T, W] of a `Selection`, contiguous; default: every page is read.
    scales: for 8-bit pages, float32 [num_pages, num_kv_heads, 2], contiguous.

    Queries of the work list without a row in q are left out. Rows without a query in the work list become (0,
    -inf) below num_merges, and are left unchanged from there on.
    """
    num_kv_heads, page_size, head_dim = k_pages.shape[1:]
    group = q.shape[1] // num_kv_heads
    work, partials, capacity, num_items, num_merges = launch
    layout = WorkLayout.of(capacity)
    config = launch_config(head_dim, q.element_size())
    logit, factor = logit_factors(options)
    chosen = None if mask is None else list_chosen_pages(mask, launch, page_size, group)
    if num_items > 0:
        _attend[(num_items * num_kv_heads,)](
            q,
            k_pages,
            v_pages,
            work,
            partials,
            out,
            lse,
            q.stride()[:2],
            k_pages.stride()[:3],
            v_pages.stride()[:3],
            (layout.query_order, layout.query_position, layout.pages),
            capacity.partials,
            q.shape[0],
            (num_kv_heads, group),
            logit,
            factor,
            options.window,
            chosen,
            scales,
            options.sinks,
            options.slopes,
            options.chunk,
            HEAD_DIM=head_dim,
            BLOCK_D=triton.next_power_of_2(head_dim),
            PAGE_SIZE=page_size,
            BLOCK_N=config.block_n,
            TALL_BLOCK_N=config.tall_block_n,
            MAX_BLOCK_M=config.max_block_m,
            HAS_WINDOW=options.window > 0,
            HAS_CHUNK=options.chunk > 0,
            HAS_SOFT_CAP=options.soft_cap > 0,
            COMPUTE=COMPUTE[q.dtype],
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
    if num_merges > 0:
        _merge[(num_merges, num_kv_heads)](
            work,
            partials,
            out,
            lse,
            (layout.query_order, layout.merge_begin, layout.merge_base),
            capacity.partials,
            q.shape[0],
            options.sinks,
            GROUP=group,
            BLOCK_G=triton.next_power_of_2(group),
            HEAD_DIM=head_dim,
            BLOCK_D=triton.next_power_of_2(head_dim),
        )


def sparse_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    launch: WorkLaunch,
    options: AttentionOptions,
    out: Tensor,
    lse: Tensor,
    mask: Tensor | None = None,
    scales: Tensor | None = None,
) -> None:
    """`tree_attention` with the options that only Triton has: chosen pages, 8-bit pages, slopes, chunks."""
    tree_attention(q, k_pages, v_pages, launch, options, out, lse, mask, scales)


@triton.jit(do_not_specialize=["num_q_rows", "window", "attention_chunk"])
def _attend(
    q_ptr,  # [num_q_rows, num_kv_heads * group, HEAD_DIM]
    k_ptr,  # [num_pages, num_kv_heads, PAGE_SIZE, HEAD_DIM]
    v_ptr,
    work_ptr,
    partials_ptr,
    out_ptr,
    lse_ptr,
    q_strides,
    k_strides,
    v_strides,
    offsets,  # of query_order, query_position and pages in the work list
    partials_capacity,
    num_q_rows,
    heads,  # (num_kv_heads, group)
    logit_factor,
    exponent_factor,
    window,
    chosen,  # ChosenPages, or None
    scales_ptr,  # [num_pages, num_kv_heads, 2], or None
    sinks_ptr,  # [num_kv_heads * group], or None
    slopes_ptr,  # likewise
    attention_chunk,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TALL_BLOCK_N: tl.constexpr,
    MAX_BLOCK_M: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_CHUNK: tl.constexpr,
    HAS_SOFT_CAP: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Program (item, KV head), heads fastest: programs start in order, so the longest items start first."""
    item = tl.program_id(0) // heads[0]
    kv_head = tl.program_id(0) % heads[0]
    if item >= tl.load(work_ptr):
        return
    record_ptr = work_ptr + 16 + item * 8
    height = tl.load(record_ptr + 7)
    num_rows = tl.load(record_ptr + 5) - tl.load(record_ptr + 4)
    if MAX_BLOCK_M == 16:
        for first_row in range(0, num_rows, 16):
            _attend_tile(
                q_ptr, k_ptr, v_ptr, work_ptr, partials_ptr, out_ptr, lse_ptr,
                q_strides, k_strides, v_strides, offsets, partials_capacity, num_q_rows, heads,
                logit_factor, exponent_factor, window, chosen, scales_ptr, sinks_ptr, slopes_ptr,
                attention_chunk, record_ptr, first_row, kv_head,
                HEAD_DIM, BLOCK_D, PAGE_SIZE, BLOCK_N, HAS_WINDOW, HAS_CHUNK, HAS_SOFT_CAP, COMPUTE, 16,
            )  # fmt: skip
    elif height == 16:
        _attend_tile(
            q_ptr, k_ptr, v_ptr, work_ptr, partials_ptr, out_ptr, lse_ptr,
            q_strides, k_strides, v_strides, offsets, partials_capacity, num_q_rows, heads,
            logit_factor, exponent_factor, window, chosen, scales_ptr, sinks_ptr, slopes_ptr,
            attention_chunk, record_ptr, 0, kv_head,
            HEAD_DIM, BLOCK_D, PAGE_SIZE, BLOCK_N, HAS_WINDOW, HAS_CHUNK, HAS_SOFT_CAP, COMPUTE, 16,
        )  # fmt: skip
    elif chosen is not None:  # the rows' choices occupy registers that a tall tile would need
        for first_row in range(0, num_rows, 64):
            _attend_tile(
                q_ptr, k_ptr, v_ptr, work_ptr, partials_ptr, out_ptr, lse_ptr,
                q_strides, k_strides, v_strides, offsets, partials_capacity, num_q_rows, heads,
                logit_factor, exponent_factor, window, chosen, scales_ptr, sinks_ptr, slopes_ptr,
                attention_chunk, record_ptr, first_row, kv_head,
                HEAD_DIM, BLOCK_D, PAGE_SIZE, TALL_BLOCK_N, HAS_WINDOW, HAS_CHUNK, HAS_SOFT_CAP, COMPUTE, 64,
            )  # fmt: skip
    elif MAX_BLOCK_M == 64 or height == 64:
        _attend_tile(
            q_ptr, k_ptr, v_ptr, work_ptr, partials_ptr, out_ptr, lse_ptr,
            q_strides, k_strides, v_strides, offsets, partials_capacity, num_q_rows, heads,
            logit_factor, exponent_factor, window, chosen, scales_ptr, sinks_ptr, slopes_ptr,
            attention_chunk, record_ptr, 0, kv_head,
            HEAD_DIM, BLOCK_D, PAGE_SIZE, BLOCK_N, HAS_WINDOW, HAS_CHUNK, HAS_SOFT_CAP, COMPUTE, 64,
        )  # fmt: skip
    else:
        _attend_tile(
            q_ptr, k_ptr, v_ptr, work_ptr, partials_ptr, out_ptr, lse_ptr,
            q_strides, k_strides, v_strides, offsets, partials_capacity, num_q_rows, heads,
            logit_factor, exponent_factor, window, chosen, scales_ptr, sinks_ptr, slopes_ptr,
            attention_chunk, record_ptr, 0, kv_head,
            HEAD_DIM, BLOCK_D, PAGE_SIZE, TALL_BLOCK_N, HAS_WINDOW, HAS_CHUNK, HAS_SOFT_CAP, COMPUTE, 128,
        )  # fmt: skip


@triton.jit
def _attend_tile(
    q_ptr, k_ptr, v_ptr, work_ptr, partials_ptr, out_ptr, lse_ptr,
    q_strides, k_strides, v_strides, offsets, partials_capacity, num_q_rows, heads,
    logit_factor, exponent_factor, window, chosen, scales_ptr, sinks_ptr, slopes_ptr,
    attention_chunk, record_ptr, first_row, kv_head,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_CHUNK: tl.constexpr,
    HAS_SOFT_CAP: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_M: tl.constexpr,
):  # fmt: skip
    pages_ptr = work_ptr + offsets[2] + tl.load(record_ptr)
    first_position = tl.load(record_ptr + 1)
    num_tokens = tl.load(record_ptr + 2)
    channel = tl.arange(0, BLOCK_D)
    in_head = channel < HEAD_DIM
    _, live, query, q_row, head = rows_of_tile(
        work_ptr, record_ptr, first_row, offsets, num_q_rows, heads, kv_head, BLOCK_M
    )
    q = load_queries(q_ptr, q_strides, q_row, head, live, HEAD_DIM, BLOCK_D, COMPUTE)

    # Relative to the item's first token, a row sees the tokens last - window + 1 .. last.
    position = tl.load(work_ptr + offsets[1] + query, mask=live, other=2**30)
    begin = 0
    end = num_tokens
    if chosen is not None:
        entries_ptr = chosen[1] + chosen_offset(chosen, record_ptr, kv_head)
        first_column = first_position // PAGE_SIZE
        words_ptr = chosen[0] + (kv_head.to(tl.int64) * num_q_rows + tl.where(live, q_row, 0)) * chosen[5]
        item = tl.program_id(0) // heads[0]
        end = tl.load(chosen[2] + item * heads[0] + kv_head) * PAGE_SIZE
    elif HAS_WINDOW:
        first_visible = tl.min(position, 0) - window + 1 - first_position
        begin = tl.maximum(first_visible, 0) // BLOCK_N * BLOCK_N
    last = tl.where(live, tl.minimum(position - first_position, num_tokens - 1), -1)
    oldest = position - first_position - window
    if HAS_CHUNK:
        before_chunk = position - position % attention_chunk - 1 - first_position
        oldest = tl.maximum(oldest, before_chunk) if HAS_WINDOW else before_chunk
        if chosen is None:
            begin = tl.maximum(tl.min(oldest, 0) + 1, 0) // BLOCK_N * BLOCK_N
    if slopes_ptr is not None:
        slope = tl.load(slopes_ptr + head, mask=live, other=0.0) * 1.4426950408889634

    k_head_ptr = k_ptr + kv_head.to(tl.int64) * k_strides[1] + channel[None, :]
    v_head_ptr = v_ptr + kv_head.to(tl.int64) * v_strides[1] + channel[None, :]
    row_max = tl.full([BLOCK_M], -float("inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in range(begin, end, BLOCK_N):
        token = start + tl.arange(0, BLOCK_N)
        held = token < end
        slot = (token.to(tl.uint32) % PAGE_SIZE).to(tl.int64)  # signed ints make registers spill
        if chosen is not None:
            entry = token // PAGE_SIZE
            page = tl.load(entries_ptr + entry, mask=held, other=-1).to(tl.int64)
            index = tl.load(entries_ptr + chosen[3] + entry, mask=held, other=0)
            token = index * PAGE_SIZE + slot.to(tl.int32)
            held = held & (token < num_tokens)
        else:
            page = tl.load(pages_ptr + token // PAGE_SIZE, mask=held, other=-1).to(tl.int64)
            held = page >= 0  # not a hole
        token = tl.where(held, token, 2**30)  # out of sight
        mask = held[:, None] & in_head[None, :]
        k_offset = page * k_strides[0] + slot * k_strides[2]
        k = tl.load(k_head_ptr + k_offset[:, None], mask=mask, other=0.0).to(COMPUTE)
        s = tl.dot(q, k.T, input_precision="ieee")
        if scales_ptr is not None:
            scale_ptr = scales_ptr + (page * heads[0] + kv_head) * 2
            s = s * tl.load(scale_ptr, mask=held, other=0.0)[None, :]
        if HAS_SOFT_CAP:
            s = 1 - 2 / (tl.exp2(s * logit_factor) + 1)  # tanh, without inf / inf
        visible = token[None, :] <= last[:, None]
        if chosen is not None:
            if BLOCK_N % PAGE_SIZE == 0 or PAGE_SIZE % BLOCK_N == 0:  # a bit for each page of the step
                pages: tl.constexpr = (BLOCK_N + PAGE_SIZE - 1) // PAGE_SIZE
                entry = start // PAGE_SIZE + tl.arange(0, pages)
                there = entry * PAGE_SIZE < end
                column = first_column + tl.load(entries_ptr + chosen[3] + entry, mask=there, other=0)
                reads = chosen_bits(words_ptr, column, there[None, :])
                reads = tl.broadcast_to(reads[:, :, None], [BLOCK_M, pages, BLOCK_N // pages])
                reads = tl.reshape(reads, [BLOCK_M, BLOCK_N])
            else:
                reads = chosen_bits(words_ptr, first_column + index, visible)
            visible = visible & (reads != 0)
        if HAS_WINDOW or HAS_CHUNK:
            visible = visible & (token[None, :] > oldest[:, None])
        s = s * exponent_factor
        if slopes_ptr is not None:
            s += (token[None, :] - (position - first_position)[:, None]).to(tl.float32) * slope[:, None]
        s = tl.where(visible, s, -float("inf"))

        new_max = tl.maximum(row_max, tl.max(s, 1))
        shift = tl.where(new_max == -float("inf"), 0.0, new_max)  # 0 rather than NaN if nothing was seen yet
        p = tl.exp2(s - shift[:, None])
        rescale = tl.exp2(row_max - shift)
        row_sum = row_sum * rescale + tl.sum(p, 1)
        row_max = new_max
        v_offset = page * v_strides[0] + slot * v_strides[2]
        v = tl.load(v_head_ptr + v_offset[:, None], mask=mask, other=0.0).to(COMPUTE)
        if scales_ptr is not None:
            p = p * tl.load(scale_ptr + 1, mask=held, other=0.0)[None, :]
        acc = tl.dot(p.to(COMPUTE), v, acc * rescale[:, None], input_precision="ieee")

    row_sum = tl.where(row_sum == 0, 1.0, row_sum)  # a row that saw nothing is (0, -inf)
    result = acc / row_sum[:, None]
    result_lse = (row_max + tl.log2(row_sum)) * 0.6931471805599453
    # Looked up again: rows kept through the loop in the layout of stores made other registers spill.
    partial_base = tl.load(record_ptr + 6)
    if partial_base == -(2**31):
        _, live, _, q_row, head = rows_of_tile(
            work_ptr, record_ptr, first_row, offsets, num_q_rows, heads, kv_head, BLOCK_M
        )
        if sinks_ptr is not None:
            result, result_lse = with_sinks(result, result_lse, sinks_ptr, head, live)
        to = q_row * (heads[0] * heads[1]) + head
        mask = live[:, None] & in_head[None, :]
        tl.store(
            out_ptr + to[:, None] * HEAD_DIM + channel[None, :],
            result.to(out_ptr.dtype.element_ty),
            mask=mask,
        )
        tl.store(lse_ptr + to, result_lse, mask=live)
    else:
        row, live, _, _, _ = rows_of_tile(
            work_ptr, record_ptr, first_row, offsets, num_q_rows, heads, kv_head, BLOCK_M
        )
        to = kv_head.to(tl.int64) * partials_capacity + partial_base + row
        mask = live[:, None] & in_head[None, :]
        partial_lse_ptr = partials_ptr + tl.cast(partials_capacity, tl.int64) * heads[0] * HEAD_DIM
        tl.store(partials_ptr + to[:, None] * HEAD_DIM + channel[None, :], result, mask=mask)
        tl.store(partial_lse_ptr + to, result_lse, mask=live)


@triton.jit(do_not_specialize=["num_q_rows"])
def _merge(
    work_ptr,
    partials_ptr,
    out_ptr,
    lse_ptr,
    offsets,  # of query_order, merge_begin and merge_base in the work list
    partials_capacity,
    num_q_rows,
    sinks_ptr,  # [num_kv_heads * GROUP], or None
    GROUP: tl.constexpr,
    BLOCK_G: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Program (query, KV head): merges the query's partials in path order, for all heads of the group.

    Past the planned queries, query i is row i of q: padding of a batch, which has seen nothing.
    """
    query = tl.program_id(0)
    kv_head = tl.program_id(1)
    planned = query < tl.load(work_ptr + 1)
    q_row = tl.load(work_ptr + offsets[0] + query, mask=planned, other=query).to(tl.int64)
    begin = tl.load(work_ptr + offsets[1] + query, mask=planned, other=0)
    end = tl.load(work_ptr + offsets[1] + query + 1, mask=planned, other=0)
    if (planned & (begin == end)) | (q_row >= num_q_rows):  # an item wrote the result | q has no such row
        return
    member = tl.arange(0, BLOCK_G)
    live = member < GROUP
    channel = tl.arange(0, BLOCK_D)
    mask = live[:, None] & (channel < HEAD_DIM)[None, :]
    first = kv_head.to(tl.int64) * partials_capacity + query * GROUP + member
    partial_lse_ptr = partials_ptr + tl.cast(partials_capacity, tl.int64) * tl.num_programs(1) * HEAD_DIM

    row_max = tl.full([BLOCK_G], -float("inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_G], tl.float32)
    acc = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
    for i in range(begin, end):
        partial = first + tl.load(work_ptr + offsets[2] + i)
        part_lse = tl.load(partial_lse_ptr + partial, mask=live, other=-float("inf"))
        part = tl.load(partials_ptr + partial[:, None] * HEAD_DIM + channel[None, :], mask=mask, other=0.0)
        new_max = tl.maximum(row_max, part_lse)
        shift = tl.where(new_max == -float("inf"), 0.0, new_max)
        rescale = tl.exp(row_max - shift)
        weight = tl.exp(part_lse - shift)
        row_sum = row_sum * rescale + weight
        row_max = new_max
        acc = acc * rescale[:, None] + part * weight[:, None]

    row_sum = tl.where(row_sum == 0, 1.0, row_sum)  # a row that saw nothing is (0, -inf)
    result = acc / row_sum[:, None]
    result_lse = row_max + tl.log(row_sum)
    if sinks_ptr is not None:
        head = kv_head * GROUP + member
        counted = member < tl.where(planned, GROUP, 0)
        result, result_lse = with_sinks(result, result_lse, sinks_ptr, head, counted)
    out_row = (q_row * tl.num_programs(1) + kv_head) * GROUP + member
    tl.store(
        out_ptr + out_row[:, None] * HEAD_DIM + channel[None, :],
        result.to(out_ptr.dtype.element_ty),
        mask=mask,
    )
    tl.store(lse_ptr + out_row, result_lse, mask=live)
