"""Estimates of how much of its attention each query would give to each page."""

from __future__ import annotations

import torch
from torch import Tensor

from tts_kernels import _core
from tts_kernels.device_plan import DevicePlan
from tts_kernels.ops._common import (
    PAGE_SIZE,
    check_devices,
    check_plan_tensors,
    plan_view,
    register,
    token_rows,
)
from tts_kernels.ops._sparse_work import score_pages_work
from tts_kernels.plan import TreePlan

_DTYPES = (torch.float32, torch.bfloat16)


def score_pages(
    q: Tensor, summaries: Tensor, plan: TreePlan | DevicePlan, *, scale: float | None = None
) -> Tensor:
    """Estimated share of each page in the attention of each query, from summaries of the pages' keys.

    A page of n tokens that a query sees stands for n keys with one logit: scale * (q . mean) for means
    (Kinetics, block top-k attention), or the bound scale * sum_j max(q_j min_j, q_j max_j) (Quest).
    The score is the softmax of that over the pages of the path, mean over the query heads of a KV head.
    A page that branches share is read once for all of them. On the CPU the bits of a query's scores depend on
    its own path only.

    Args:
        q: [T, num_q_heads, head_dim], float32 or bfloat16, contiguous channels, other strides free; rows in
            the order of the plan's arguments.
        summaries: [num_pages, num_kv_heads, S, head_dim], contiguous, float32 or bfloat16: one layer of
            `KVPool.summaries`, S = 1 for means, S = 2 for minima and maxima.
        plan: for packed pages `plan(block_tables, lengths, query_lens)`, for plain pages
            `DevicePlanner(...).update(block_tables, lengths, query_lens)`: then q has the dtype of the
            summaries, which may be float16 too, and may have more rows than the plan, with scores of 0 up to
            capacity.queries and any behind. NaN and infinity are not looked for, which would wait for the
            device.
        scale: factor of the logits, > 0; default head_dim ** -0.5.

    Returns:
        float32 [num_kv_heads, T, P], P = plan.max_columns. A row sums to 1 over the pages that the query sees
        and is 0 elsewhere.

    Raises:
        TypeError, ValueError: a dtype, shape or stride does not fit, an index of the plan leads outside the
            summaries, or a row of q, or a summary that it meets, holds NaN or infinity.
    """
    if isinstance(plan, DevicePlan):
        return score_pages_work(q, summaries, plan, scale)
    if not isinstance(plan, TreePlan):
        raise TypeError(f"plan: got {type(plan).__name__}, expected a TreePlan (tts_kernels.plan)")
    check_devices(q=q, k_pages=summaries)
    if q.dim() != 3 or summaries.dim() != 4 or summaries.shape[2] not in (1, 2):
        raise ValueError(
            f"q, summaries: got shapes {list(q.shape)} and {list(summaries.shape)}, expected "
            "[T, num_q_heads, head_dim] and [num_pages, num_kv_heads, 1 or 2, head_dim]"
        )
    if q.shape[2] != summaries.shape[3] or q.shape[2] == 0 or q.shape[0] != plan.num_queries:
        raise ValueError(
            f"q: got shape {list(q.shape)}, expected [{plan.num_queries}, num_q_heads, {summaries.shape[3]}] "
            "for this plan and these summaries"
        )
    if plan.page_size != PAGE_SIZE:
        raise ValueError(
            f"plan.page_size: got {plan.page_size}, expected {PAGE_SIZE}; plan with page_size=16"
        )
    scores: Tensor = torch.ops.tts_kernels.score_pages.default(
        q,
        summaries,
        plan.query_order,
        plan.query_position,
        plan.blocks,
        plan.segments,
        plan.pages,
        plan.max_columns,
        q.shape[-1] ** -0.5 if scale is None else scale,
    )
    return scores


def _score_pages_cpu(
    q: Tensor,
    summaries: Tensor,
    query_order: Tensor,
    query_position: Tensor,
    blocks: Tensor,
    segments: Tensor,
    pages: Tensor,
    columns: int,
    scale: float,
) -> Tensor:
    if q.dtype not in _DTYPES or summaries.dtype not in _DTYPES:
        raise TypeError(
            f"q, summaries: got {q.dtype} and {summaries.dtype}, expected torch.float32 or torch.bfloat16"
        )
    if q.stride(2) != 1 or not summaries.is_contiguous():
        raise ValueError(
            f"q, summaries: got strides {q.stride()} and {summaries.stride()}, expected contiguous "
            "channels of q and contiguous summaries"
        )
    check_plan_tensors(query_order, query_position, blocks, segments, pages)
    num_pages, num_kv_heads, vectors, head_dim = summaries.shape
    scores = torch.empty((num_kv_heads, q.shape[0], columns), dtype=torch.float32)
    _core.score_pages(
        _core.SummaryView(summaries.data_ptr(), vectors),
        (num_pages, num_kv_heads, head_dim),
        summaries.dtype is torch.bfloat16,
        plan_view(query_order, query_position, blocks, segments, pages),
        token_rows(q),
        q.shape[1],
        q.dtype is torch.bfloat16,
        scale,
        (scores.data_ptr(), columns),
        torch.get_num_threads(),
    )
    return scores


def _score_pages_fake(
    q: Tensor,
    summaries: Tensor,
    query_order: Tensor,
    query_position: Tensor,
    blocks: Tensor,
    segments: Tensor,
    pages: Tensor,
    columns: int,
    scale: float,
) -> Tensor:
    return q.new_empty((summaries.shape[1], q.shape[0], columns), dtype=torch.float32)


register(
    "score_pages(Tensor q, Tensor summaries, Tensor query_order, Tensor query_position, Tensor blocks, "
    "Tensor segments, Tensor pages, int columns, float scale) -> Tensor",
    cpu=_score_pages_cpu,
    fake=_score_pages_fake,
)
