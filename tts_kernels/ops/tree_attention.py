"""Attention over a tree of pages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Literal, overload

import torch
from torch import Tensor

from .. import _core
from ..checks import Array, Rule, Signature, flag, instance, integer, real
from ..checks.pages import (
    INT32,
    default_scale,
    kind_of_pages,
    kv_view,
    no_scales,
    page_arrays,
    row_dtypes,
    scale_arrays,
    token_rows,
)
from ..plans.arrays import COLUMNS, PLAN_ARRAYS, packed_plan, plan_tensors, plan_view
from ..plans.device_plan import DevicePlan
from ..plans.selection import Selection
from ..plans.tree_plan import TreePlan
from .operator import register
from .tree_attention_work import OPTION_NUMBERS, tree_attention_work


def _takes(values: Mapping[str, Any]) -> Signature:
    dtype, plain = kind_of_pages(values)
    if plain:
        raise ValueError(
            f"k_pages, v_pages: got plain pages {list(values['k_pages'].shape)} with a TreePlan, which is "
            "for packed pages on the CPU, expected a DevicePlan; make one with DevicePlanner(...).update(...)"
        )
    return _described(dtype, "columns" in values)


@lru_cache
def _described(dtype: torch.dtype, mass: bool) -> Signature:
    return Signature(
        *page_arrays(dtype, plain=False),
        *PLAN_ARRAYS,
        Array("q", "T, num_q_heads, head_dim", row_dtypes(dtype), packed=1),
        Rule("q", "num_q_heads >= 1 and num_q_heads % num_kv_heads == 0"),
        *OPTION_NUMBERS,
        Array("mask", "num_kv_heads, T, words", INT32, optional=True, label="selection.mask"),
        Rule("selection.mask", "words >= 1"),
        *scale_arrays(dtype),
        *(COLUMNS if mass else ()),
        home="k_pages",
        absent=no_scales(dtype),
    )


@overload
def tree_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    plan: TreePlan | DevicePlan,
    *,
    scale: float | None = None,
    window: int | None = None,
    logits_soft_cap: float | None = None,
    selection: Selection | None = None,
    return_mass: Literal[False] = False,
    scales: Tensor | None = None,
) -> tuple[Tensor, Tensor]: ...
@overload
def tree_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    plan: TreePlan | DevicePlan,
    *,
    scale: float | None = None,
    window: int | None = None,
    logits_soft_cap: float | None = None,
    selection: Selection | None = None,
    return_mass: Literal[True],
    scales: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]: ...
def tree_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    plan: TreePlan | DevicePlan,
    *,
    scale: float | None = None,
    window: int | None = None,
    logits_soft_cap: float | None = None,
    selection: Selection | None = None,
    return_mass: bool = False,
    scales: Tensor | None = None,
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]:
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
        scale: factor of the logits, > 0 and <= 2**64; default head_dim ** -0.5.
        window: a query at position p sees positions max(0, p - window + 1) .. p; default all up to p.
        logits_soft_cap: c turns a scaled logit s into c * tanh(s / c), off by up to c * 2**-24; at
            most 4,096, default none.
        selection: the pages that each query reads (`select_pages`); default all. Pages that nobody reads are
            not loaded; one that several queries read is loaded once for each KV head. On packed pages all
            pages selected give the same bits as no selection.
        return_mass: also return the share of each page in each query's softmax.
        scales: of int8 pages, float32 [num_pages, num_kv_heads, 2]: values are bytes times scales.

    Returns:
        out: [T, num_q_heads, head_dim] of q's dtype.
        lse: [T, num_q_heads] float32, natural logarithm of the sum of the exponentials of the logits.
        mass, with return_mass: [num_kv_heads, T, P] float32, P = plan.max_columns, mean over the query heads
            of a KV head; 0 for pages that the query does not read.
        A query that reads no page has 0, -inf and 0.

    Sums are float32. GPUs and the CPU levels with a bfloat16 dot product (amx, avx512_bf16) round
    probabilities to the dtype of the values before they multiply them; other CPU levels, and all with int8
    pages, keep them in float32.
    Probabilities below 2**-125 of the largest are 0.

    Raises:
        TypeError, ValueError: a dtype, device, shape, stride or option does not fit, or an index of a
            TreePlan leads outside the pool.
        ImportError: plain pages, and Triton is not installed.
    """
    scale = None if scale is None else real("scale", scale)
    window = 0 if window is None else integer("window", window, 1)
    soft_cap = 0.0 if logits_soft_cap is None else real("logits_soft_cap", logits_soft_cap)
    if logits_soft_cap is not None and soft_cap == 0:
        raise ValueError("logits_soft_cap: got 0.0, expected > 0, or None for no cap")
    mask = None
    if selection is not None:
        mask = instance("selection", selection, Selection, "make it with select_pages").mask
    if isinstance(plan, DevicePlan):
        options = (scale, window, soft_cap, mask, scales)
        results = tree_attention_work(
            q, k_pages, v_pages, plan, *options, return_mass=flag("return_mass", return_mass)
        )
        return (results[0], results[1], results[2]) if return_mass else (results[0], results[1])
    if isinstance(q, Tensor) and q.is_cuda:
        raise ValueError(
            f"plan: got a TreePlan for tensors on {q.device}, expected a DevicePlan; make one with "
            "DevicePlanner(...).update(...)"
        )
    tensors = plan_tensors(packed_plan(plan))
    if scale is None:
        scale = default_scale(q)
    arguments = (q, k_pages, v_pages, *tensors, scale, window, soft_cap, mask, scales)
    if flag("return_mass", return_mass):
        out, lse, mass = _tree_attention_mass(*arguments, plan.max_columns)
        return out, lse, mass
    out, lse = _tree_attention(*arguments)
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
    mask: Tensor | None = None,
    scales: Tensor | None = None,
    mass: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    tokens, heads, _ = q.shape
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = torch.empty((tokens, heads), dtype=torch.float32)
    _core.tree_attention(
        kv_view(k_pages, v_pages, scales),
        plan_view(query_order, query_position, blocks, segments, pages),
        token_rows(q),
        heads,
        out.data_ptr(),
        lse.data_ptr(),
        scale,
        min(window, 2**30),
        logits_soft_cap,
        (0, 0) if mask is None else (mask.data_ptr(), mask.shape[2]),
        (0, 0) if mass is None else (mass.data_ptr(), mass.shape[2]),
        torch.get_num_threads(),
    )
    return out, lse


def _tree_attention_mass_cpu(
    q: Tensor, k_pages: Tensor, v_pages: Tensor, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    mass = torch.empty((k_pages.shape[1], q.shape[0], options[-1]), dtype=torch.float32)
    attend: Callable[..., tuple[Tensor, Tensor]] = _tree_attention_cpu
    out, lse = attend(q, k_pages, v_pages, *options[:-1], mass=mass)
    return out, lse, mass


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
    mask: Tensor | None = None,
    scales: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=torch.float32)


def _tree_attention_mass_fake(
    q: Tensor, k_pages: Tensor, v_pages: Tensor, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    mass = q.new_empty((k_pages.shape[1], q.shape[0], options[-1]), dtype=torch.float32)
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=torch.float32), mass


_ARGUMENTS = (
    "(Tensor q, Tensor k_pages, Tensor v_pages, Tensor query_order, Tensor query_position, Tensor blocks, "
    "Tensor segments, Tensor pages, float scale, int window, float logits_soft_cap"
)
_tree_attention = register(
    f"tree_attention{_ARGUMENTS}, Tensor? mask=None, Tensor? scales=None) -> (Tensor out, Tensor lse)",
    _takes,
    cpu=_tree_attention_cpu,
    fake=_tree_attention_fake,
)
_tree_attention_mass = register(
    f"tree_attention.mass{_ARGUMENTS}, Tensor? mask, Tensor? scales, int columns) "
    "-> (Tensor out, Tensor lse, Tensor mass)",
    _takes,
    cpu=_tree_attention_mass_cpu,
    fake=_tree_attention_mass_fake,
)
