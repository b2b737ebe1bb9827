"""Attention over plain pages by the work list of a DevicePlan: torch.ops.tts_kernels.tree_attention.work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..backends.choice import kernel
from ..backends.launch import AttentionOptions, WorkCapacity, WorkLaunch, WorkLayout
from ..checks import Array, Number, Rule, Signature, require_dense
from ..checks.pages import (
    FLOAT32,
    INT32,
    kind_of_pages,
    no_scales,
    page_arrays,
    row_dtypes,
    scale_arrays,
)
from ..plans.device_plan import DevicePlan
from .operator import register

# Options of attention. Kernels compute with them in float32, where c * tanh(s / c) is off by c * 2**-24.
OPTION_NUMBERS = (
    Number("scale", "2**-126 <= scale <= 2**64"),
    Number("window", "window >= 0"),
    Number("logits_soft_cap", "logits_soft_cap == 0 or 2**-126 <= logits_soft_cap <= 2**12"),
)


def _takes(values: Mapping[str, Any]) -> Signature:
    dtype, _ = kind_of_pages(values)
    capacity = _capacity(values["capacity"])
    return Signature(
        *page_arrays(dtype, plain=True),
        Array("q", "rows, num_q_heads, head_dim", row_dtypes(dtype), packed=1),
        Rule("q", "num_q_heads >= 1 and num_q_heads % num_kv_heads == 0"),
        *OPTION_NUMBERS,
        Array("mask", "num_kv_heads, rows, words", INT32, optional=True, label="selection.mask"),
        Rule("selection.mask", "words >= 1"),
        *scale_arrays(dtype),
        Array("work", "work_ints", INT32, label="plan.work"),
        Rule("plan.work", f"work_ints >= {WorkLayout.of(capacity).end}"),
        Array("partials", "partial_floats", FLOAT32, written=True, label="plan.partials"),
        Rule("plan.partials", f"partial_floats >= num_kv_heads * {capacity.partials} * (head_dim + 1)"),
        Number("num_items", f"0 <= num_items <= {capacity.items}"),
        Number("num_merges", f"0 <= num_merges <= {capacity.queries}"),
        *([Number("columns", "0 <= columns < 2**31")] if "columns" in values else []),
        home="k_pages",
        absent=no_scales(dtype),
    )


def _capacity(capacity: Any) -> WorkCapacity:
    if not isinstance(capacity, (list, tuple)) or len(capacity) != 5 or min(capacity) < 0:
        raise ValueError(f"capacity: got {capacity}, expected 5 numbers >= 0 (see WorkCapacity)")
    return WorkCapacity(*capacity)


def tree_attention_work(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    plan: DevicePlan,
    scale: float | None,
    window: int,
    logits_soft_cap: float,
    mask: Tensor | None = None,
    scales: Tensor | None = None,
    *,
    return_mass: bool = False,
) -> tuple[Tensor, ...]:
    """`tts_kernels.tree_attention` with a DevicePlan; window and logits_soft_cap are 0 for none.

    mask: that of a Selection. scales: of pages of 8 bits.

    The plan's memory may hold a later plan by the time the kernels run, as in a captured graph: they leave
    out its queries that q has no row for.
    """
    work, partials, capacity, num_items, num_merges = plan.launch
    check_planned(plan, k_pages, q)
    if isinstance(mask, Tensor) and mask.dim() == 3 and 32 * mask.shape[2] < plan.max_columns:
        raise ValueError(
            f"selection.mask: got {mask.shape[2]} words for up to {32 * mask.shape[2]} pages, expected at "
            f"least {-(-plan.max_columns // 32)} for the {plan.max_columns} pages of the plan; select with it"
        )
    arguments = (
        q,
        k_pages,
        v_pages,
        work,
        partials,
        capacity,
        num_items,
        num_merges,
        plan.head_dim**-0.5 if scale is None else scale,
        window,
        logits_soft_cap,
        mask,
        scales,
    )
    if return_mass:
        out, lse, mass = _work_mass(*arguments, plan.max_columns)
        return out, lse, mass
    out, lse = _work(*arguments)
    return out, lse


def check_planned(plan: DevicePlan, k_pages: Any, q: Any) -> None:
    """That these pages and rows are those that the plan was made for."""
    require_dense("k_pages", k_pages)
    require_dense("q", q)
    pages, queries = k_pages.shape, q.shape
    if k_pages.dtype != plan.dtype:
        raise TypeError(f"k_pages: got {k_pages.dtype}, expected {plan.dtype} as planned")
    if pages[1:] != (plan.num_kv_heads, plan.page_size, plan.head_dim) or pages[0] < plan.num_pages:
        expected = f"[>= {plan.num_pages}, {plan.num_kv_heads}, {plan.page_size}, {plan.head_dim}]"
        raise ValueError(f"k_pages: got shape {list(pages)}, expected {expected} as planned")
    if queries[1:] != (plan.num_q_heads, plan.head_dim) or queries[0] < plan.num_queries:
        expected = f"[>= {plan.num_queries}, {plan.num_q_heads}, {plan.head_dim}]"
        raise ValueError(f"q: got shape {list(queries)}, expected {expected} as planned")


def _tree_attention_work(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    work: Tensor,
    partials: Tensor,
    capacity: list[int],
    num_items: int,
    num_merges: int,
    scale: float,
    window: int,
    logits_soft_cap: float,
    mask: Tensor | None = None,
    scales: Tensor | None = None,
    mass: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    tokens, num_q_heads, _ = q.shape
    launch = WorkLaunch(work, partials, WorkCapacity(*capacity), num_items, num_merges)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = torch.empty((tokens, num_q_heads), dtype=torch.float32, device=q.device)
    options = AttentionOptions(scale, min(window, 2**30), logits_soft_cap)
    if mask is None and scales is None:
        kernel("tree_attention", k_pages)(q, k_pages, v_pages, launch, options, out, lse)
    else:
        attend = kernel("sparse_attention", k_pages)
        attend(q, k_pages, v_pages, launch, options, out, lse, mask, scales)
    if mass is not None:
        kernel("page_mass", k_pages)(q, k_pages, launch, options, mask, mass, scales)
    return out, lse


def _tree_attention_work_mass(
    q: Tensor, k_pages: Tensor, v_pages: Tensor, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    mass = torch.empty((k_pages.shape[1], q.shape[0], options[-1]), dtype=torch.float32, device=q.device)
    attend: Callable[..., tuple[Tensor, Tensor]] = _tree_attention_work
    out, lse = attend(q, k_pages, v_pages, *options[:-1], mass=mass)
    return out, lse, mass


def _tree_attention_work_fake(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    work: Tensor,
    partials: Tensor,
    capacity: list[int],
    num_items: int,
    num_merges: int,
    scale: float,
    window: int,
    logits_soft_cap: float,
    mask: Tensor | None = None,
    scales: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=torch.float32)


def _tree_attention_work_mass_fake(
    q: Tensor, k_pages: Tensor, v_pages: Tensor, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    mass = q.new_empty((k_pages.shape[1], q.shape[0], options[-1]), dtype=torch.float32)
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=torch.float32), mass


_ARGUMENTS = (
    "(Tensor q, Tensor k_pages, Tensor v_pages, Tensor work, Tensor(a!) partials, int[] capacity, "
    "int num_items, int num_merges, float scale, int window, float logits_soft_cap, "
)
_work_mass = register(
    f"tree_attention.work_mass{_ARGUMENTS}Tensor? mask, Tensor? scales, int columns) "
    "-> (Tensor out, Tensor lse, Tensor mass)",
    _takes,
    cpu=_tree_attention_work_mass,
    cuda=_tree_attention_work_mass,
    fake=_tree_attention_work_mass_fake,
)
_work = register(
    f"tree_attention.work{_ARGUMENTS}Tensor? mask=None, Tensor? scales=None) -> (Tensor out, Tensor lse)",
    _takes,
    cpu=_tree_attention_work,
    cuda=_tree_attention_work,
    fake=_tree_attention_work_fake,
)
