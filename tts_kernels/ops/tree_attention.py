"""Attention over a tree of pages."""

from __future__ import annotations

import torch
from torch import Tensor

from tts_kernels import _core
from tts_kernels.device_plan import DevicePlan
from tts_kernels.ops._common import (
    PAGE_SIZE,
    check_devices,
    check_int32,
    check_rows,
    kv_view,
    register,
    token_rows,
)
from tts_kernels.ops.tree_attention_work import tree_attention_work
from tts_kernels.plan import TreePlan


def tree_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    plan: TreePlan | DevicePlan,
    *,
    scale: float | None = None,
    window: int | None = None,
    logits_soft_cap: float | None = None,
    scales: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax attention of T queries, each over the tokens up to its own position of its branch.

    Each page that branches share is read once for all of them. On packed pages (a `KVPool` on the CPU) the
    bits of a query's result do not depend on the other queries, on how its path is shared, on `query_block`
    of the plan or on the number of threads. On plain pages (a GPU) they are the same each time for one plan.

    Args:
        q: [T, num_q_heads, head_dim] of the pages' dtype, or float32 or bfloat16 with int8 pages; contiguous
            channels, other strides free; rows in the order of the plan's arguments. num_q_heads is a multiple
            of num_kv_heads.
        k_pages, v_pages: one layer of a `KVPool`, or plain pages [num_pages, num_kv_heads, page_size,
            head_dim] with contiguous channels; the queries' own tokens already appended.
        plan: for packed pages `plan(block_tables, lengths, query_lens)`, for plain pages
            `DevicePlanner(...).update(block_tables, lengths, query_lens)`. Indices in a DevicePlan are not
            checked. q may have more rows than it has queries: behind a DevicePlanner of a fixed capacity
            they are 0 in out and -inf in lse up to capacity.queries, all others hold anything. Where a later
            update put more queries into the plan's memory than q has rows, those queries are left out.
        scale: factor of the logits, > 0; default head_dim ** -0.5.
        window: a query at position p sees positions max(0, p - window + 1) .. p; default all up to p.
        logits_soft_cap: c turns a scaled logit s into c * tanh(s / c); default none.
        scales: of int8 pages, float32 [num_pages, num_kv_heads, 2]: values are bytes times scales.

    Returns:
        out: [T, num_q_heads, head_dim] of q's dtype.
        lse: [T, num_q_heads] float32, natural logarithm of the sum of the exponentials of the logits.

    Sums are float32. GPUs and the CPU level with a bfloat16 dot product (avx512_bf16) round probabilities
    to the dtype of the values before they multiply them; other CPU levels, and all with int8 pages, keep them
    in float32.
    Probabilities below 2**-125 of the largest are 0.

    Raises:
        TypeError, ValueError: a dtype, device, shape, stride or option does not fit, or an index of a
            TreePlan leads outside the pool.
        ImportError: plain pages, and Triton is not installed.
    """
    if window is not None and window < 1:
        raise ValueError(f"window: got {window}, expected >= 1, or None to see everything")
    if logits_soft_cap is not None and not logits_soft_cap > 0:
        raise ValueError(f"logits_soft_cap: got {logits_soft_cap}, expected > 0, or None for no cap")
    if isinstance(plan, DevicePlan):
        if scales is not None:
            raise ValueError("scales: got a tensor with a DevicePlan, expected None: plain pages have none")
        return tree_attention_work(q, k_pages, v_pages, plan, scale, window or 0, logits_soft_cap or 0.0)
    if not isinstance(plan, TreePlan):
        raise TypeError(
            f"plan: got {type(plan).__name__}, expected a TreePlan (tts_kernels.plan) or a DevicePlan "
            "(DevicePlanner(...).update)"
        )
    if isinstance(q, Tensor) and q.is_cuda:
        raise ValueError(
            f"plan: got a TreePlan for tensors on {q.device}, expected a DevicePlan; make one with "
            "DevicePlanner(...).update(...)"
        )
    check_devices(
        q=q,
        k_pages=k_pages,
        v_pages=v_pages,
        query_order=plan.query_order,
        query_position=plan.query_position,
        blocks=plan.blocks,
        segments=plan.segments,
        pages=plan.pages,
    )
    if scales is not None:
        check_devices(k_pages=k_pages, scales=scales)
    if q.dim() != 3 or q.shape[2] == 0:
        raise ValueError(f"q: got shape {list(q.shape)}, expected [T, num_q_heads, head_dim]")
    if plan.page_size != PAGE_SIZE:
        raise ValueError(
            f"plan.page_size: got {plan.page_size}, expected {PAGE_SIZE}; plan with page_size=16"
        )
    out, lse = torch.ops.tts_kernels.tree_attention.default(
        q,
        k_pages,
        v_pages,
        plan.query_order,
        plan.query_position,
        plan.blocks,
        plan.segments,
        plan.pages,
        q.shape[-1] ** -0.5 if scale is None else scale,
        window or 0,
        logits_soft_cap or 0.0,
        scales,
    )
    return out, lse


def _tree_attention_cpu(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    query_order: Tensor,
    query_position: Tensor,
    blocks: Tensor,
    segments: Tensor,
    pages: Tensor,
    scale: float,
    window: int,
    logits_soft_cap: float,
    scales: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    kv = kv_view(k_pages, v_pages, scales)
    check_rows("q", q, None, v_pages.shape[3], k_pages.dtype)
    check_int32("query_order", query_order)
    check_int32("query_position", query_position)
    check_int32("blocks", blocks, 4)
    check_int32("segments", segments, 5)
    check_int32("pages", pages)
    tokens, heads, _ = q.shape
    if not tokens == query_order.shape[0] == query_position.shape[0]:
        raise ValueError(
            f"q: got {tokens} rows, expected as many as the plan has queries "
            f"({query_order.shape[0]} and {query_position.shape[0]})"
        )
    plan = _core.PlanView(
        query_order.data_ptr(),
        query_position.data_ptr(),
        tokens,
        blocks.data_ptr(),
        blocks.shape[0],
        segments.data_ptr(),
        segments.shape[0],
        pages.data_ptr(),
        pages.shape[0],
    )
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = torch.empty((tokens, heads), dtype=torch.float32)
    _core.tree_attention(
        kv,
        plan,
        token_rows(q),
        heads,
        out.data_ptr(),
        lse.data_ptr(),
        scale,
        min(window, 2**30),
        logits_soft_cap,
        torch.get_num_threads(),
    )
    return out, lse


def _tree_attention_fake(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    query_order: Tensor,
    query_position: Tensor,
    blocks: Tensor,
    segments: Tensor,
    pages: Tensor,
    scale: float,
    window: int,
    logits_soft_cap: float,
    scales: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=torch.float32)


register(
    "tree_attention(Tensor q, Tensor k_pages, Tensor v_pages, Tensor query_order, Tensor query_position, "
    "Tensor blocks, Tensor segments, Tensor pages, float scale, int window, float logits_soft_cap, "
    "Tensor? scales=None) -> (Tensor out, Tensor lse)",
    cpu=_tree_attention_cpu,
    fake=_tree_attention_fake,
)
