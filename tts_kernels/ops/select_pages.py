"""Choosing the pages that each query reads."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from tts_kernels import _core
from tts_kernels.device_plan import DevicePlan, SelectOptions
from tts_kernels.ops._common import check_mask, plan_view
from tts_kernels.ops._sparse_work import select_top_pages_work
from tts_kernels.ops.score_pages import score_pages
from tts_kernels.plan import TreePlan
from tts_kernels.selection import Selection, SelectionCounts

Share = Literal["branch", "siblings", "tree"]
_SHARES = ("branch", "siblings", "tree")


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
    share: Share = "branch",
    keep_tail: bool = True,
) -> Selection:
    """`score_pages`, then `select_top_pages`, which have the arguments and the errors."""
    scores = score_pages(q, summaries, plan, scale=scale)
    return select_top_pages(
        scores, plan, budget, top_p=top_p, sink=sink, recent=recent, share=share, keep_tail=keep_tail
    )


def select_top_pages(
    scores: Tensor,
    plan: TreePlan | DevicePlan,
    budget: int | Tensor,
    *,
    top_p: float | None = None,
    sink: int = 1,
    recent: int = 1,
    share: Share = "branch",
    keep_tail: bool = True,
) -> Selection:
    """The pages of the highest scores, for each query and KV head.

    A query always keeps its first `sink` and its last `recent` pages and, where its branch was forked, those
    behind the fork. To these come the pages with the highest scores (of equal ones the earlier) until there
    are `budget` of them, or fewer where the scores of all that are taken reach top_p (Twilight). Pages of
    score 0 are not taken.

    Args:
        scores: float32 [num_kv_heads, T, P] >= 0, from `score_pages`, or the exact masses that
            `tree_attention` returns: the oracle.
        plan: the plan of the scores.
        budget: pages, >= 1, that a query reads for a KV head, those that it always keeps included; an int,
            or int32 [T] in the order of q. A query that sees no more pages than that reads them all and takes
            no part in sharing.
        top_p: share of the scores of a query's pages, in (0, 1]. Default: as many as the budget allows.
        sink, recent: pages, >= 0 and >= 1.
        share: who chooses together. "branch": each query for itself. "siblings": the queries of neighbouring
            branches whose deepest fork is the same. "tree": all under one root. A page's score is then the
            sum over the queries that do not keep it anyway; as many are taken as the smallest budget leaves
            beside the most pages that one of them always keeps; top_p is of their mean.
        keep_tail: keep the pages that no other branch of the plan holds, of branches that share a page with
            another. Where tails are most of the context, as in long samples of one prompt, False.

    Returns:
        The selection, for `tree_attention`.

    Raises:
        TypeError, ValueError: an argument is out of range or does not belong to the plan.
    """
    _check(scores, top_p, sink, recent, share)
    if isinstance(plan, DevicePlan):
        options = SelectOptions(budget, top_p, sink, recent, share, keep_tail)
        return select_top_pages_work(scores, plan, options)
    _check_plan(scores, plan)
    budgets = _budgets(budget, plan.num_queries)
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
        _SHARES.index(share),
        keep_tail,
        mask.data_ptr(),
        torch.get_num_threads(),
    )
    return Selection(mask)


def count_selected(selection: Selection, plan: TreePlan) -> SelectionCounts:
    """What `tree_attention` reads with this selection, of the pages that the plan's queries see."""
    mask = selection.mask
    check_mask(mask, mask.shape[0], plan.num_queries)
    view = plan_view(plan.query_order, plan.query_position, plan.blocks, plan.segments, plan.pages)
    return SelectionCounts(*_core.count_selected(view, (mask.data_ptr(), mask.shape[2]), mask.shape[0]))


def _check(scores: Tensor, top_p: float | None, sink: int, recent: int, share: Share) -> None:
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
    if share not in _SHARES:
        raise ValueError(f"share: got {share!r}, expected one of {_SHARES}")


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
    if not scores.is_cpu or not scores.is_contiguous():
        raise ValueError(
            f"scores: got strides {scores.stride()} on {scores.device}, expected contiguous on the CPU"
        )


def _budgets(budget: int | Tensor, queries: int) -> Tensor:
    """int32 [queries] >= 1."""
    if isinstance(budget, int) and not isinstance(budget, bool):
        if budget < 1:
            raise ValueError(f"budget: got {budget}, expected at least 1 page")
        return torch.full((queries,), min(budget, 2**31 - 1), dtype=torch.int32)
    if not isinstance(budget, Tensor) or budget.dtype != torch.int32:
        got = budget.dtype if isinstance(budget, Tensor) else repr(budget)
        raise TypeError(f"budget: got {got}, expected an int or a tensor of torch.int32")
    if budget.shape != (queries,) or not budget.is_cpu or not budget.is_contiguous():
        raise ValueError(
            f"budget: got shape {list(budget.shape)} on {budget.device}, expected contiguous [{queries}] "
            "on the CPU, one number a query"
        )
    return budget
