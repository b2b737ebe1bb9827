"""Attention over a tree of pages."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .. import _core
from ..backends.launch import WorkCapacity
from ..checks import Array, Number, Result, Rule, Signature, instance, integer, real
from ..checks.pages import (
    COLUMNS,
    FLOAT32,
    INT32,
    PLAN,
    kind_of_pages,
    page_arrays,
    row_dtypes,
    scale_arrays,
)
from ..plans.device_plan import DevicePlan
from ..plans.selection import Selection
from ..plans.tree_plan import TreePlan, packed_plan
from .operator import register
from .tree_attention_work import attend_plain, capacity_of, planned, work_arguments

# Kernels compute in float32, where c * tanh(s / c) has an error of c * 2**-24.
OPTIONS = (
    Number("scale", "2**-126 <= scale <= 2**64", float, optional=True),
    Number("window", "window >= 1", optional=True),
    Number("logits_soft_cap", "2**-126 <= logits_soft_cap <= 2**12", float, optional=True),
)
_ORDER = "scale window logits_soft_cap mask scales"
_LATER = "sinks alibi_slopes attention_chunk"  # added after the operators' schemas were public


@lru_cache
def _describe(dtype: torch.dtype, capacity: WorkCapacity | None, mass: bool) -> Signature:
    """Describes the arguments. capacity: a DevicePlan's, for plain pages; None: a TreePlan, for packed."""
    plain, rows = capacity is not None, "rows" if capacity is not None else "T"
    results = [Result("out", f"{rows}, num_q_heads, head_dim", "q")]
    results += [Result("lse", f"{rows}, num_q_heads", torch.float32)]
    if mass:
        results += [Result("mass", f"num_kv_heads, {rows}, columns", torch.float32)]
    return Signature(
        *page_arrays(dtype, plain=plain),
        Array("q", f"{rows}, num_q_heads, head_dim", row_dtypes(dtype), packed=1),
        Rule("q", "num_q_heads >= 1 and num_q_heads % num_kv_heads == 0"),
        *((PLAN,) if capacity is None else work_arguments(capacity)),
        *OPTIONS,
        Array("sinks", "num_q_heads", FLOAT32, optional=True),
        Array("alibi_slopes", "num_q_heads", FLOAT32, optional=True),
        Number("attention_chunk", "attention_chunk >= 1", optional=True),
        Array("mask", f"num_kv_heads, {rows}, words", INT32, optional=True, label="selection.mask"),
        Rule("selection.mask", "words >= 1"),
        *scale_arrays(dtype),
        *(COLUMNS if mass else ()),
        home="k_pages",
        results=results,
        plain=plain,
    )


def _packed(values: Mapping[str, Any]) -> Signature:
    dtype, plain = kind_of_pages(values)
    if plain:
        raise ValueError(
            f"k_pages, v_pages: got plain pages {list(values['k_pages'].shape)} with a TreePlan, which is "
            "for packed pages on the CPU, expected a DevicePlan; make one with DevicePlanner(...).update(...)"
        )
    return _describe(dtype, None, "columns" in values)


def _plain(values: Mapping[str, Any]) -> Signature:
    dtype, _ = kind_of_pages(values)
    return _describe(dtype, capacity_of(values["capacity"]), "columns" in values)


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
    scales: Tensor | None = None,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    attention_chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Computes softmax attention of T queries, each over the tokens of its branch up to its own position.

    Each page that branches share is read once for all of them. On packed pages (a `KVPool` on the CPU) the
    bits of a query's result do not depend on the other queries, on how its path is shared, on the plan's
    `query_block` or on the number of threads. On plain pages (a GPU) one plan gives the same bits every time.

    Args:
        q: [T, num_q_heads, head_dim] of the pages' dtype, or float32 or bfloat16 with int8 pages; contiguous
            channels, any other strides; rows in the order of the plan's arguments. num_q_heads is a multiple
            of num_kv_heads.
        k_pages, v_pages: one layer of a `KVPool`, or plain pages [num_pages, num_kv_heads, page_size,
            head_dim] with contiguous channels; the queries' own tokens already appended.
        plan: for packed pages `plan(block_tables, lengths, query_lens)`, for plain pages
            `DevicePlanner(...).update(block_tables, lengths, query_lens)`. Indices in a DevicePlan are not
            checked. q may have more rows than the plan has queries. With a DevicePlanner of fixed capacity,
            these rows are 0 in out and -inf in lse up to capacity.queries, and undefined after. If a later
            update put more queries into the plan's memory than q has rows, those queries are left out.
        scale: factor of the logits, > 0 and <= 2**64; default head_dim ** -0.5.
        window: a query at position p sees positions max(0, p - window + 1) .. p; default: all up to p.
        logits_soft_cap: c turns a scaled logit s into c * tanh(s / c), with an error of up to c * 2**-24; at
            most 4,096, default: none.
        selection: the pages that each query reads (`select_pages`); default: all. Pages that nobody reads are
            not loaded; a page that several queries read is loaded once per KV head. On packed pages,
            selecting all pages gives the same bits as no selection.
        scales: for int8 pages, float32 [num_pages, num_kv_heads, 2]: values are bytes times scales.
        sinks: float32 [num_q_heads], a logit of each head that takes part in every query's softmax and has no
            value (gpt-oss); neither scaled nor capped; -inf means no sink. Default: none. Sinks count once
            per query, after all its pages. To merge results over parts of a context by their lse, give sinks
            to one of the calls only.
        alibi_slopes: float32 [num_q_heads] (ALiBi, Press et al., arXiv 2108.12409): slope * distance is
            subtracted from a logit after scaling and capping, where distance is the query's position minus
            the key's. Default: none.
        attention_chunk: a query at position p sees the positions p - p % attention_chunk .. p (Llama 4);
            combined with a window, the positions that both allow. Default: no such limit.

    Returns:
        out: [T, num_q_heads, head_dim] of q's dtype.
        lse: [T, num_q_heads] float32, natural logarithm of the sum of the exponentials of the logits, sinks
            included.
        A query that reads no page has out = 0 and lse = -inf, or the sink's logit if there is one.

    Sums are float32. GPUs and the CPU levels with a bfloat16 dot product (amx, avx512_bf16) round
    probabilities to the dtype of the values before multiplying. Other CPU levels, and all levels with int8
    pages, keep them in float32. Probabilities below 2**-125 of the largest are 0.

    Raises:
        TypeError, ValueError: a dtype, device, shape, stride or option does not fit, or an index of a
            TreePlan is outside the pool.
        ImportError: pages are plain and Triton is not installed.
    """
    results: tuple[Tensor, Tensor] = _attend(
        False,
        q,
        k_pages,
        v_pages,
        plan,
        scale,
        window,
        logits_soft_cap,
        selection,
        scales,
        sinks,
        alibi_slopes,
        attention_chunk,
    )
    return results


def tree_attention_with_mass(
    q: Tensor, k_pages: Tensor, v_pages: Tensor, plan: TreePlan | DevicePlan, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs `tree_attention`, and also returns each page's share of each query's softmax.

    Args:
        q, k_pages, v_pages, plan: same as for `tree_attention`.
        options: its other arguments, by name.

    Returns:
        out, lse: same as from `tree_attention`.
        mass: [num_kv_heads, T, P] float32, P = plan.max_columns, averaged over the query heads of a KV head;
            0 for pages that the query does not read. Sinks are not included: with them a row sums to less
            than 1.

    Raises:
        TypeError, ValueError, ImportError: same as `tree_attention`.
    """
    results: tuple[Tensor, Tensor, Tensor] = _attend(True, q, k_pages, v_pages, plan, **options)
    return results


def _attend(
    mass: bool,
    q: Any,
    k_pages: Any,
    v_pages: Any,
    plan: Any,
    scale: Any = None,
    window: Any = None,
    logits_soft_cap: Any = None,
    selection: Any = None,
    scales: Any = None,
    sinks: Any = None,
    alibi_slopes: Any = None,
    attention_chunk: Any = None,
) -> Any:
    if scale is not None:
        scale = real("scale", scale)
    if window is not None:
        window = integer("window", window, 1)
    if logits_soft_cap is not None:
        logits_soft_cap = real("logits_soft_cap", logits_soft_cap)
    if attention_chunk is not None:
        attention_chunk = integer("attention_chunk", attention_chunk, 1)
    later = sinks, alibi_slopes, attention_chunk
    if selection is not None:
        selection = instance("selection", selection, Selection, "make it with select_pages").mask
    columns = (plan.max_columns,) if mass and isinstance(plan, (TreePlan, DevicePlan)) else ()
    if isinstance(plan, DevicePlan):
        args = (q, k_pages, v_pages, *planned(plan, k_pages, q, selection))
        call = _work_with_mass if mass else _work
        return call(*args, scale, window, logits_soft_cap, selection, scales, *columns, *later)
    if isinstance(q, Tensor) and q.is_cuda:
        raise ValueError(
            f"plan: got a TreePlan for tensors on {q.device}, expected a DevicePlan; make one with "
            "DevicePlanner(...).update(...)"
        )
    if type(plan) is not TreePlan:
        plan = packed_plan(plan)
    call = _packed_with_mass if mass else _packed_alone
    numbers = scale, window, logits_soft_cap
    return call(q, k_pages, v_pages, plan.buffer, *numbers, selection, scales, *columns, *later)


def _attend_packed(a: Any) -> None:
    mass = getattr(a, "mass", None)
    _core.tree_attention(
        _core.KVView(a.k_pages, a.v_pages, a.scales),
        (a.plan.data_ptr(), a.plan.shape[0]),
        _core.TokenRows(a.q),
        a.q.shape[:2],
        a.out.data_ptr(),
        a.lse.data_ptr(),
        a.q.shape[2] ** -0.5 if a.scale is None else a.scale,
        0 if a.window is None else min(a.window, 2**30),
        a.logits_soft_cap or 0.0,
        (0, 0) if a.mask is None else (a.mask.data_ptr(), a.mask.shape[2]),
        (0, 0) if mass is None else (mass.data_ptr(), mass.shape[2]),
        0 if a.sinks is None else a.sinks.data_ptr(),
        0 if a.alibi_slopes is None else a.alibi_slopes.data_ptr(),
        0 if a.attention_chunk is None else min(a.attention_chunk, 2**30),
        torch.get_num_threads(),
    )


_packed_order, _work_order = (
    f"q k_pages v_pages {where} {_ORDER}" for where in ("plan", "work partials capacity num_items num_merges")
)
_example = _describe(torch.float32, None, False), _describe(torch.float32, None, True)
_packed_alone = register(
    "tree_attention", f"{_packed_order} {_LATER}", _packed, _example[0], cpu=_attend_packed
)
_packed_with_mass = register(
    "tree_attention_with_mass", f"{_packed_order} columns {_LATER}", _packed, _example[1], cpu=_attend_packed
)
_least = WorkCapacity(*[16] * 5)
_work = register(
    "tree_attention_work",
    f"{_work_order} {_LATER}",
    _plain,
    _describe(torch.float32, _least, False),
    plain=attend_plain,
)
_work_with_mass = register(
    "tree_attention_work_with_mass",
    f"{_work_order} columns {_LATER}",
    _plain,
    _describe(torch.float32, _least, True),
    plain=attend_plain,
)
