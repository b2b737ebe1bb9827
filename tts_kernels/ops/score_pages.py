"""Estimates how much of its attention each query would give to each page."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _core
from ..checks import Array, Number, Result, Rule, Signature, real
from ..checks.pages import COLUMNS, CORE_DTYPES, PACKED_HEAD_DIM, PLAN, SUMMARY_SHAPE
from ..plans.device_plan import DevicePlan
from ..plans.tree_plan import TreePlan, packed_plan
from .operator import register
from .sparse_work import score_pages_work

_DTYPES = (torch.float32, torch.bfloat16)
_TAKES = Signature(
    Array("summaries", "num_pages, num_kv_heads, S, channels", _DTYPES),
    Rule("summaries", "num_kv_heads >= 1"),
    PLAN,
    Array("q", "T, num_q_heads, head_dim", _DTYPES, packed=1),
    Rule("q", PACKED_HEAD_DIM),
    Rule("summaries", SUMMARY_SHAPE),
    Rule("q", "num_q_heads >= 1 and num_q_heads % num_kv_heads == 0"),
    *COLUMNS,
    Number("scale", "2**-126 <= scale <= 2**64", float, optional=True),
    home="summaries",
    results=(Result("scores", "num_kv_heads, T, columns", torch.float32),),
)


def score_pages(
    q: Tensor, summaries: Tensor, plan: TreePlan | DevicePlan, *, scale: float | None = None
) -> Tensor:
    """Estimates each page's share of each query's attention from summaries of the pages' keys.

    A page of which a query sees n tokens stands for n keys with one logit: scale * (q . mean) for means
    (Kinetics, block top-k attention), or the bound scale * sum_j max(q_j min_j, q_j max_j) (Quest). For
    quarters the logit is the largest scale * (q . mean) over the slow channels: [head_dim / 4, head_dim / 2)
    and [3/4 head_dim, head_dim). The score is the softmax of these logits over the pages of the path,
    averaged over the query heads of a KV head. A page that branches share is read once for all of them. On
    the CPU the bits of a query's scores depend on its own path only.

    Args:
        q: [T, num_q_heads, head_dim], float32 or bfloat16, contiguous channels, any other strides; rows in
            the order of the plan's arguments.
        summaries: [num_pages, num_kv_heads, S, channels], contiguous, float32 or bfloat16: one layer of
            `KVPool.summaries`. S = 1: means, S = 2: minima and maxima, both of head_dim channels; S = 4:
            quarters, of head_dim / 2 channels.
        plan: for packed pages `plan(block_tables, lengths, query_lens)`, for plain pages
            `DevicePlanner(...).update(block_tables, lengths, query_lens)`. With plain pages q has the dtype
            of the summaries, which may be float16 too. It may have more rows than the plan: their scores are
            0 up to capacity.queries and undefined after. NaN and infinity are not checked, because the check
            would wait for the device.
        scale: factor of the logits, > 0; default head_dim ** -0.5.

    Returns:
        float32 [num_kv_heads, T, P], P = plan.max_columns. A row sums to 1 over the pages that the query sees
        and is 0 elsewhere.

    Raises:
        TypeError, ValueError: a dtype, shape or stride does not fit, an index of the plan is outside the
            summaries, or a row of q, or a summary it is multiplied with, holds NaN or infinity.
    """
    scale = None if scale is None else real("scale", scale)
    if summaries is None:
        raise TypeError('summaries: got None; make the pool with KVPool(summaries="mean")')
    if isinstance(plan, DevicePlan):
        return score_pages_work(q, summaries, plan, scale)
    if type(plan) is not TreePlan:
        plan = packed_plan(plan)
    scores: Tensor = _score_pages(q, summaries, plan.buffer, plan.max_columns, scale)
    return scores


def _score_packed(a: Any) -> None:
    num_pages, num_kv_heads = a.summaries.shape[:2]
    head_dim = a.q.shape[2]
    _core.score_pages(
        _core.SummaryView(a.summaries),
        (num_pages, num_kv_heads, head_dim),
        CORE_DTYPES[a.summaries.dtype],
        (a.plan.data_ptr(), a.plan.shape[0]),
        _core.TokenRows(a.q),
        a.q.shape[:2],
        head_dim**-0.5 if a.scale is None else a.scale,
        (a.scores.data_ptr(), a.columns),
        torch.get_num_threads(),
    )


_score_pages = register(
    "score_pages", "q summaries plan columns scale", lambda _: _TAKES, _TAKES, cpu=_score_packed
)
