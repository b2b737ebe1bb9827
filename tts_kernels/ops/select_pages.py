"""Chooses the pages that each query reads."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import _core
from ..backends.launch import SelectOptions
from ..checks import Array, Guard, Signature, empty, instance, integer, real
from ..checks.pages import COLUMNS, FLOAT32, INT32, PLAN
from ..plans.device_plan import DevicePlan
from ..plans.selection import Selection, SelectionCounts
from ..plans.tree_plan import TreePlan, packed_plan
from .score_pages import score_pages
from .sparse_work import select_top_pages_work

_SELECT = Guard(
    "select_top_pages",
    ("scores", "plan", "budget", "tail_begin", "groups", "columns"),
    lambda _: Signature(
        PLAN,
        *COLUMNS,
        Array("scores", "num_kv_heads, T, columns", FLOAT32),
        Array("budget", "T", INT32),
        Array("tail_begin", "T", INT32, optional=True),
        Array("groups", "T", INT32, optional=True),
        home="plan",
    ),
)
_COUNT = Guard(
    "count_selected",
    ("mask", "plan"),
    lambda _: Signature(
        PLAN,
        Array("mask", "num_kv_heads, T, words", INT32, label="selection.mask"),
        home="plan",
    ),
)


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
    """Runs `score_pages`, then `select_top_pages`; see there for arguments and errors."""
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
    """Selects the pages with the highest scores, for each query and KV head.

    A query always keeps its first `sink` pages, its last `recent` pages and its tail. Pages with the highest
    scores (the earlier one among equals) are added until there are `budget` pages, or fewer if the scores of
    all pages taken reach top_p (Twilight). Pages with score 0 are not taken.

    The plan says which pages queries share. The caller says what they keep and which choose together, so a
    choice does not depend on which other branches are in the plan.

    Args:
        scores: float32 [num_kv_heads, T, P] >= 0, from `score_pages`, or the exact masses that
            `tree_attention_with_mass` returns (the oracle).
        plan: the plan that the scores were computed with.
        budget: pages, >= 1, that a query reads per KV head, including those it always keeps; an int, or int32
            [T] in the order of q. A query that sees no more pages than that reads them all and takes no part
            in sharing.
        top_p: share of the scores of a query's pages, in (0, 1]. Default: no limit besides the budget.
        sink, recent: pages, >= 0 and >= 1.
        tail_begin: int32 [T] in the order of q, >= 0: the page on the query's path (p // page_size for
            position p) from which on it keeps all; 2**31 - 1 for no tail. Default: no query has one.
        groups: int32 [T] in the order of q, each from 0 to T - 1: queries with the same number choose
            together. A page's score is then the sum over those queries that do not keep it anyway. The number
            of pages taken is the smallest budget less the largest number of pages that one query always
            keeps; top_p applies to their mean. Default: each query chooses for itself.

    Returns:
        The selection, for `tree_attention`.

    Columns of evicted pages count as pages here.

    Raises:
        TypeError, ValueError: an argument is out of range or does not belong to the plan, or (on the CPU) a
            score is negative, NaN or infinite, or a number in budget, tail_begin or groups is out of range.
    """
    known = _checked_options(budget, top_p, sink, recent)._replace(tail_begin=tail_begin, groups=groups)
    if isinstance(plan, DevicePlan):
        return select_top_pages_work(scores, plan, known)
    plan = packed_plan(plan)
    budgets = known.budget
    if isinstance(budgets, int):
        budgets = empty("budget", (plan.num_queries,), torch.int32).fill_(budgets)
    _SELECT.check((scores, plan.buffer, budgets, tail_begin, groups, plan.max_columns))
    heads, queries, columns = scores.shape
    mask = empty("mask", (heads, queries, -(-columns // 32)), torch.int32)
    _core.select_top_pages(
        (scores.data_ptr(), columns),
        (heads, queries),
        (plan.buffer.data_ptr(), plan.buffer.shape[0]),
        budgets.data_ptr(),
        math.inf if known.top_p is None else known.top_p,
        (min(known.sink, columns), min(known.recent, columns)),
        0 if tail_begin is None else tail_begin.data_ptr(),
        0 if groups is None else groups.data_ptr(),
        mask.data_ptr(),
        torch.get_num_threads(),
    )
    return Selection(mask)


def count_selected(selection: Selection, plan: TreePlan) -> SelectionCounts:
    """Counts what `tree_attention` reads with this selection of the pages that the plan's queries see."""
    mask = instance("selection", selection, Selection, "make it with select_pages").mask
    buffer = instance("plan", plan, TreePlan, "make it with tts_kernels.plan").buffer
    _COUNT.check((mask, buffer))
    heads, rows, words = mask.shape
    return SelectionCounts(
        *_core.count_selected((buffer.data_ptr(), buffer.shape[0]), (mask.data_ptr(), words), (heads, rows))
    )


def _checked_options(budget: Any, top_p: Any, sink: Any, recent: Any) -> SelectOptions:
    most = 2**31 - 1  # more than any path has
    if not isinstance(budget, Tensor):
        budget = min(integer("budget", budget, 1), most)
    if top_p is not None and not 0 < (top_p := real("top_p", top_p)) <= 1:
        raise ValueError(f"top_p: got {top_p}, expected 0 < top_p <= 1, or None for the whole budget")
    sink, recent = min(integer("sink", sink, 0), most), min(integer("recent", recent, 1), most)
    return SelectOptions(budget, top_p, sink, recent, None, None)
