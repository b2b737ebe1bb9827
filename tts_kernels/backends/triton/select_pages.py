"""Chooses the best pages of each query on the device, without waiting for the host."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...backends.launch import SelectOptions, WorkLaunch, WorkLayout

# A query's columns are ranked in the registers of one program: at most 32 in each of 1,024 threads.
MAX_COLUMNS = 2**15


def select_top_pages(
    scores: Tensor, launch: WorkLaunch, page_size: int, options: SelectOptions, mask: Tensor
) -> None:
    """Fills mask int32 [num_kv_heads, T, ceil(P / 32)], contiguous: the mask of a `Selection`.

    Args:
        scores: float32 [num_kv_heads, T, P], contiguous.

    Rows that the work list does not have choose nothing up to capacity.queries, and are left unchanged from
    there on. Choosing together allocates several times the size of scores; in a captured graph, from the
    graph's pool.

    Raises:
        ValueError: P is above MAX_COLUMNS.
    """
    num_kv_heads, rows, columns = scores.shape
    if columns > MAX_COLUMNS:
        raise ValueError(
            f"scores: got {columns} columns, expected at most {MAX_COLUMNS}; plan with max_columns for the "
            "longest branch, or use larger pages"
        )
    queries = launch.capacity.queries
    layout = WorkLayout.of(launch.capacity)
    offsets = (layout.query_order, layout.query_position)
    budgets = options.budget if isinstance(options.budget, Tensor) else launch.work
    tails = launch.work if options.tail_begin is None else options.tail_begin
    extra = scores  # placeholder, never read
    if options.groups is not None:
        extra = _chosen_together(scores, options.groups, launch, page_size, options)
    block_c = max(32, triton.next_power_of_2(columns))
    _select[(queries, num_kv_heads)](
        scores,
        budgets,
        tails,
        extra,
        launch.work,
        mask,
        offsets,
        (rows, columns, mask.shape[2]),
        0 if isinstance(options.budget, Tensor) else options.budget,
        options.sink,
        options.recent,
        1.0 if options.top_p is None else options.top_p,
        PAGE_SIZE=page_size,
        HAS_BUDGETS=isinstance(options.budget, Tensor),
        HAS_TOP_P=options.top_p is not None,
        HAS_TAILS=options.tail_begin is not None,
        TOGETHER=options.groups is not None,
        BLOCK_C=block_c,
        num_warps=max(1, min(32, block_c // 512)),
    )


def _chosen_together(
    scores: Tensor,
    groups: Tensor,
    launch: WorkLaunch,
    page_size: int,
    options: SelectOptions,
) -> Tensor:
    """Whether a query takes a page that its group chose: int8 [num_kv_heads, capacity.queries, P].

    Queries are in depth-first order. Each page that queries of a group may choose is listed at the first of
    these queries, with the sum of their scores.
    """
    heads, rows, columns = scores.shape
    queries, device = launch.capacity.queries, scores.device
    layout, work = WorkLayout.of(launch.capacity), launch.work
    shared = work[layout.query_shared :][:queries]
    query = torch.arange(queries, device=device)
    column = torch.arange(columns, device=device)
    planned = (query < work[1]) & (work[layout.query_order :][:queries] < rows)
    order = torch.where(planned, work[layout.query_order :][:queries], 0).long()
    seen = torch.where(planned, work[layout.query_position :][:queries] // page_size + 1, 0)
    budget = (
        torch.full_like(seen, options.budget) if isinstance(options.budget, int) else options.budget[order]
    )
    choosing = planned & (budget < seen)  # the others read everything, or do not exist
    visible = (column < seen[:, None]) & choosing[:, None]
    kept = (column < options.sink) | (column >= seen[:, None] - options.recent)
    if options.tail_begin is not None:
        kept = kept | (column >= options.tail_begin[order][:, None])
    kept = kept & visible
    candidate = visible & ~kept

    # Groups by number; a query that chooses nothing is in a group after the last.
    group = torch.where(choosing, groups[order].clamp(0, queries - 1), queries).long()
    largest = torch.full((queries + 1,), -1, dtype=torch.int32, device=device)
    kept_count = largest.scatter_reduce(0, group, kept.sum(1).int(), "amax")
    least = torch.full_like(largest, 2**31 - 1).scatter_reduce(0, group, budget.int(), "amin")
    quota = (least - kept_count).clamp(min=0)
    totals, first = _sum_runs(scores, candidate, group, order, shared)

    # By group, then score (descending), column and depth-first number: two stable sorts.
    flat = totals.transpose(1, 2).reshape(heads, columns * queries)
    ranked, at = flat.sort(dim=1, descending=True, stable=True)
    of = group[at % queries]
    of, again = of.sort(dim=1, stable=True)
    ranked, at = ranked.gather(1, again), at.gather(1, again)
    groups = torch.arange(queries + 1, device=device).expand(heads, -1).contiguous()
    begin = torch.searchsorted(of, groups).gather(1, of)
    place = torch.arange(columns * queries, device=device)
    taken = (ranked > 0) & (place - begin < quota[of])
    if options.top_p is not None:
        before = ranked.clamp(min=0).cumsum(1) - ranked.clamp(min=0)
        base = before.gather(1, begin.clamp(max=columns * queries - 1))
        member = (group[:, None] == torch.arange(queries + 1, device=device)).double()
        kept_mass = (scores.double()[:, order] * kept).sum(2) @ member
        taken &= kept_mass.gather(1, of) + before - base < options.top_p * member.sum(0)[of]
    chosen = torch.zeros_like(flat, dtype=torch.bool).scatter(1, at, taken)
    chosen = chosen.view(heads, columns, queries).transpose(1, 2)
    return (chosen.gather(1, first.long().expand(heads, -1, -1)) & candidate).view(torch.int8)


def _sum_runs(
    scores: Tensor, candidate: Tensor, group: Tensor, order: Tensor, shared: Tensor
) -> tuple[Tensor, Tensor]:
    """Sums the scores of a group's candidates that are one page, and says where each sum is stored.

    Returns:
        totals: float64 [num_kv_heads, Q, P] at the first query of the page's run, 0 elsewhere. Summed in
            depth-first order, so that a plan has one result, whatever other groups lie between.
        first: int32 [Q, P]: that first query for each candidate; undefined elsewhere.
    """
    heads, rows, columns = scores.shape
    queries = order.shape[0]
    totals = torch.zeros((heads, queries, columns), dtype=torch.float64, device=scores.device)
    first = torch.zeros((queries, columns), dtype=torch.int32, device=scores.device)
    block = 128
    _sum[(triton.cdiv(columns, block), heads)](
        scores,
        candidate.view(torch.int8),
        group,
        group.argsort(stable=True),
        order,
        shared,
        totals,
        first,
        rows,
        queries,
        columns,
        BLOCK_C=block,
    )
    return totals, first


@triton.jit(do_not_specialize=["budget", "sink", "recent"])
def _select(
    scores_ptr,  # [num_kv_heads, rows, columns]
    budgets_ptr,  # [rows]
    tails_ptr,  # [rows]
    extra_ptr,  # [num_kv_heads, queries, columns]
    work_ptr,
    mask_ptr,  # [num_kv_heads, rows, words]
    offsets,  # of query_order and query_position in the work list
    sizes,  # (rows, columns, words)
    budget,
    sink,
    recent,
    top_p,
    PAGE_SIZE: tl.constexpr,
    HAS_BUDGETS: tl.constexpr,
    HAS_TOP_P: tl.constexpr,
    HAS_TAILS: tl.constexpr,
    TOGETHER: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Program (query, KV head). Past the planned queries, query i is row i of q and chooses nothing."""
    query = tl.program_id(0)
    kv_head = tl.program_id(1).to(tl.int64)
    planned = query < tl.load(work_ptr + 1)
    q_row = tl.load(work_ptr + offsets[0] + query, mask=planned, other=query).to(tl.int64)
    if q_row >= sizes[0]:
        return
    position = tl.load(work_ptr + offsets[1] + query, mask=planned, other=-1)
    seen = (position + PAGE_SIZE) // PAGE_SIZE
    column = tl.arange(0, BLOCK_C)
    kept = (column < sink) | (column >= seen - recent)
    if HAS_TAILS:
        kept = kept | (column >= tl.load(tails_ptr + q_row))
    kept = kept & (column < seen)
    if HAS_BUDGETS:
        budget = tl.load(budgets_ptr + q_row)
    if budget >= seen:
        chosen = column < seen
    elif TOGETHER:
        from_ptr = extra_ptr + (kv_head * tl.num_programs(0) + query) * sizes[1]
        chosen = kept | (tl.load(from_ptr + column, mask=column < seen, other=0) != 0)
    else:
        from_ptr = scores_ptr + (kv_head * sizes[0] + q_row) * sizes[1]
        score = tl.load(from_ptr + column, mask=column < seen, other=0.0)
        candidate = (kept == 0) & (score > 0)
        chosen = kept | _best(score, candidate, kept, budget, top_p, HAS_TOP_P)
    words = tl.reshape(chosen.to(tl.int32), [BLOCK_C // 32, 32]) << tl.arange(0, 32)[None, :]
    word = tl.arange(0, BLOCK_C // 32)
    to = mask_ptr + (kv_head * sizes[0] + q_row) * sizes[2] + word
    tl.store(to, tl.sum(words, 1), mask=word < sizes[2])


@triton.jit
def _best(score, candidate, kept, budget, top_p, HAS_TOP_P: tl.constexpr):
    """Takes the best candidates, the earliest column first among equals, within the quota and top_p.

    A candidate is taken while fewer than the quota precede it, and while their mass plus the mass of the kept
    pages is below top_p. So there is a largest number, `bound`, such that a candidate with that score would
    not be taken: all candidates above the next larger number are taken, and the first ones that equal it.
    Positive floats order like their bits, so the bound is found bit by bit.
    """
    bits = tl.where(candidate, score.to(tl.int32, bitcast=True), 0)
    quota = budget - tl.sum(kept.to(tl.int32), 0)
    if HAS_TOP_P:
        mass = tl.where(candidate, score, 0.0).to(tl.float64)
        room = top_p - tl.sum(tl.where(kept, score, 0.0).to(tl.float64), 0)
    bound = 0
    for i in range(31):
        trial = bound | (1 << (30 - i))
        above = bits > trial
        refused = tl.sum(above.to(tl.int32), 0) >= quota
        if HAS_TOP_P:
            refused = refused | (tl.sum(tl.where(above, mass, 0.0), 0) >= room)
        bound = tl.where(refused, trial, bound)
    above = bits - 1 > bound
    equal = (bits - 1 == bound).to(tl.int32)
    before = tl.cumsum(equal, 0) - equal
    taken = (equal != 0) & (tl.sum(above.to(tl.int32), 0) + before < quota)
    if HAS_TOP_P:
        taken = taken & (tl.sum(tl.where(above, mass, 0.0), 0) + before * mass < room)
    return candidate & (above | taken)


@triton.jit(do_not_specialize=["columns", "rows", "queries"])
def _sum(
    scores_ptr,  # [num_kv_heads, rows, columns]
    candidate_ptr,  # [queries, columns]
    group_ptr,  # [queries]
    by_group_ptr,  # [queries], by group, then depth-first
    order_ptr,  # [queries]
    shared_ptr,  # [queries]
    totals_ptr,  # [num_kv_heads, queries, columns]
    first_ptr,  # [queries, columns]
    rows,
    queries,
    columns,
    BLOCK_C: tl.constexpr,
):
    """Program (block of columns, KV head). A group's queries that share a column's path are consecutive."""
    kv_head = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros([BLOCK_C], tl.float64)
    run_group = tl.full([BLOCK_C], -1, tl.int32)
    ended = column < 0  # the path has forked since the last candidate
    run_first = tl.zeros([BLOCK_C], tl.int32)
    last_query = tl.full([], -1, tl.int32)
    last_group = tl.full([], -1, tl.int32)
    for i in range(queries):
        query = tl.load(by_group_ptr + i).to(tl.int32)
        group = tl.load(group_ptr + query).to(tl.int32)
        # Queries of other groups lie between two queries of a group, and the path may fork at them too.
        for between in range(tl.where(group == last_group, last_query + 1, query), query + 1):
            ended = ended | (column >= tl.load(shared_ptr + between))
        last_query = query
        last_group = group
        at = tl.cast(query, tl.int64) * columns + column
        mask = tl.load(candidate_ptr + at, mask=column < columns, other=0) != 0
        q_row = tl.load(order_ptr + query)
        score = tl.load(scores_ptr + (kv_head * rows + q_row) * columns + column, mask=mask, other=0.0)
        begins = mask & (ended | (group != run_group))
        ended = ended & (mask == 0)
        run_group = tl.where(mask, group, run_group)
        run_first = tl.where(begins, query, run_first)
        total = tl.where(begins, 0.0, total) + score.to(tl.float64)
        to = (kv_head * queries + run_first) * columns + column
        tl.store(totals_ptr + to, total, mask=mask)
        tl.store(first_ptr + at, run_first, mask=mask)  # the same from every head
