"""Choosing the pages that each query reads."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tts_kernels import _core
from tts_kernels.device_plan import DevicePlan, SelectOptions
from tts_kernels.ops._common import PAGE_SIZE, check_int32, check_mask, check_plan_tensors, plan_view
from tts_kernels.ops._sparse_work import check_rows, select_top_pages_work
from tts_kernels.ops.score_pages import score_pages
from tts_kernels.plan import TreePlan
from tts_kernels.selection import Selection, SelectionCounts


def select_pages(
    q: Tensor,
    summaries: Tensor,
    plan: TreePlan | DevicePlan,
    budget: int | Tensor,
    *,
    scale: float | None = None,
    top_p: float | None = None,
    sink: int = 1,
    recent: int = 1,
    tail_begin: Tensor | None = None,
    groups: Tensor | None = None,
) -> Selection:
    """`score_pages`, then `select_top_pages`, which have the arguments and the errors."""
    scores = score_pages(q, summaries, plan, scale=scale)
    return select_top_pages(
        scores, plan, budget, top_p=top_p, sink=sink, recent=recent, tail_begin=tail_begin, groups=groups
    )


def select_top_pages(
    scores: Tensor,
    plan: TreePlan | DevicePlan,
    budget: int | Tensor,
    *,
    top_p: float | None = None,
    sink: int = 1,
    recent: int = 1,
    tail_begin: Tensor | None = None,
    groups: Tensor | None = None,
) -> Selection:
    """The pages of the highest scores, for each query and KV head.

    A query always keeps its first `sink` and its last `recent` pages and its tail. To these come the pages
    with the highest scores (of equal ones the earlier) until there are `budget` of them, or fewer where the
    scores of all that are taken reach top_p (Twilight). Pages of score 0 are not taken.

    The plan says which pages queries share; what they keep and who chooses together is for the caller to say,
    so that a choice does not depend on which other branches are in the plan.

    Args:
        scores: float32 [num_kv_heads, T, P] >= 0, from `score_pages`, or the exact masses that
            `tree_attention` returns: the oracle.
        plan: the plan of the scores.
        budget: pages, >= 1, that a query reads for a KV head, those that it always keeps included; an int,
            or int32 [T] in the order of q. A query that sees no more pages than that reads them all and takes
            no part in sharing.
        top_p: share of the scores of a query's pages, in (0, 1]. Default: as many as the budget allows.
        sink, recent: pages, >= 0 and >= 1.
        tail_begin: int32 [T] in the order of q, >= 0: the page on its path (p // page_size for position p)
            from which on a query keeps all; 2**31 - 1 where it has no tail. Default: no query has one.
        groups: int32 [T] in the order of q, each from 0 to T - 1: queries of one number choose together.
            A page's score is then the sum over those of them that do not keep it anyway; as many are taken as
            the smallest budget leaves beside the most pages that one of them always keeps; top_p is of their
            mean. Default: each query chooses for itself.

    Returns:
        The selection, for `tree_attention`.

    Columns of evicted pages count as pages here.

    Raises:
        TypeError, ValueError: an argument is out of range or does not belong to the plan, or (on the CPU) a
            score is negative, NaN or infinite, or a number in budget, tail_begin or groups out of range.
    """
    _check(scores, top_p, sink, recent)
    for name, value in (("tail_begin", tail_begin), ("groups", groups)):
        if value is not None:
            check_rows(name, value, scores)
    if isinstance(plan, DevicePlan):
        options = SelectOptions(budget, top_p, sink, recent, tail_begin, groups)
        return select_top_pages_work(scores, plan, options)
    _check_plan(scores, plan)
    budgets = _budgets(budget, scores)
    heads, queries, columns = scores.shape
    mask = torch.empty((heads, queries, -(-columns // 32)), dtype=torch.int32)
    _core.select_top_pages(
        (scores.data_ptr(), columns),
        heads,
        plan_view(plan.query_order, plan.query_position, plan.blocks, plan.segments, plan.pages),
        plan.branches.data_ptr(),
        plan.branches.shape[0],
        budgets.data_ptr(),
        math.inf if top_p is None else top_p,
        (min(sink, columns), min(recent, columns)),
        0 if tail_begin is None else tail_begin.data_ptr(),
        0 if groups is None else groups.data_ptr(),
        mask.data_ptr(),
        torch.get_num_threads(),
    )
    return Selection(mask)


def count_selected(selection: Selection, plan: TreePlan) -> SelectionCounts:
    """What `tree_attention` reads with this selection, of the pages that the plan's queries see."""
    mask = selection.mask
    check_plan_tensors(plan.query_order, plan.query_position, plan.blocks, plan.segments, plan.pages)
    check_mask(mask, mask.shape[0], plan.num_queries)
    view = plan_view(plan.query_order, plan.query_position, plan.blocks, plan.segments, plan.pages)
    return SelectionCounts(*_core.count_selected(view, (mask.data_ptr(), mask.shape[2]), mask.shape[0]))


def _check(scores: Tensor, top_p: float | None, sink: int, recent: int) -> None:
    if not isinstance(scores, Tensor) or scores.dtype != torch.float32:
        got = scores.dtype if isinstance(scores, Tensor) else type(scores).__name__
        raise TypeError(f"scores: got {got}, expected a tensor of torch.float32")
    if scores.dim() != 3:
        raise ValueError(f"scores: got shape {list(scores.shape)}, expected [num_kv_heads, T, P]")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p: got {top_p}, expected 0 < top_p <= 1, or None for the whole budget")
    for name, value, least in (("sink", sink, 0), ("recent", recent, 1)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name}: got {value!r}, expected an int")
        if value < least:
            raise ValueError(f"{name}: got {value}, expected >= {least} pages")


def _check_plan(scores: Tensor, plan: TreePlan) -> None:
    if not isinstance(plan, TreePlan):
        raise TypeError(
            f"plan: got {type(plan).__name__}, expected a TreePlan (tts_kernels.plan) or a DevicePlan "
            "(DevicePlanner(...).update)"
        )
    if scores.shape[1:] != (plan.num_queries, plan.max_columns):
        raise ValueError(
            f"scores: got shape {list(scores.shape)}, expected [num_kv_heads, {plan.num_queries}, "
            f"{plan.max_columns}] for this plan"
        )
    if plan.page_size != PAGE_SIZE:
        raise ValueError(
            f"plan.page_size: got {plan.page_size}, expected {PAGE_SIZE}; plan with page_size=16"
        )
    check_plan_tensors(plan.query_order, plan.query_position, plan.blocks, plan.segments, plan.pages)
    check_int32("branches", plan.branches, 3)
    if not scores.is_cpu or not scores.is_contiguous():
        raise ValueError(
            f"scores: got strides {scores.stride()} on {scores.device}, expected contiguous on the CPU"
        )


def _budgets(budget: int | Tensor, scores: Tensor) -> Tensor:
    """int32 [T], one for each query of the scores."""
    if isinstance(budget, int) and not isinstance(budget, bool):
        if budget < 1:
            raise ValueError(f"budget: got {budget}, expected at least 1 page")
        return torch.full(scores.shape[1:2], min(budget, 2**31 - 1), dtype=torch.int32)
    return check_rows("budget", budget, scores)
