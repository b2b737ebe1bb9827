"""Attention over plain pages with the work list of a DevicePlan."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..backends.choice import kernel
from ..backends.launch import AttentionOptions, WorkCapacity, WorkLaunch, WorkLayout
from ..checks import Argument, Array, Number, Numbers, Rule, require_dense
from ..checks.pages import FLOAT32, INT32
from ..plans.device_plan import DevicePlan


def work_arguments(capacity: WorkCapacity) -> tuple[Argument | Rule, ...]:
    """Describes a DevicePlan of this capacity.

    By the time the kernels run, its memory may hold a later plan, as in a captured graph: they leave out
    queries without a row in q.
    """
    return (
        Array("work", "work_ints", INT32, label="plan.work"),
        Rule("plan.work", f"work_ints >= {WorkLayout.of(capacity).end}"),
        Array("partials", "partial_floats", FLOAT32, written=True, label="plan.partials"),
        Rule("plan.partials", f"partial_floats >= num_kv_heads * {capacity.partials} * (head_dim + 1)"),
        Numbers("capacity"),
        Number("num_items", f"0 <= num_items <= {capacity.items}"),
        Number("num_merges", f"0 <= num_merges <= {capacity.queries}"),
    )


def capacity_of(numbers: Any) -> WorkCapacity:
    if not isinstance(numbers, (list, tuple)) or len(numbers) != 5 or min(numbers) < 0:
        raise ValueError(f"capacity: got {numbers}, expected 5 numbers >= 0 (see WorkCapacity)")
    return WorkCapacity(*numbers)


def planned(plan: DevicePlan, k_pages: Any, q: Any, mask: Any) -> WorkLaunch:
    """Returns the plan's launch arguments; raises unless it was made for these pages, rows and mask."""
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
    if isinstance(mask, Tensor) and mask.dim() == 3 and 32 * mask.shape[2] < plan.max_columns:
        raise ValueError(
            f"selection.mask: got {mask.shape[2]} words for up to {32 * mask.shape[2]} pages, expected at "
            f"least {-(-plan.max_columns // 32)} for the {plan.max_columns} pages of the plan; select with it"
        )
    return plan.launch


def attend_plain(a: Any) -> None:
    """Launches the kernels. a: arguments and results of an operator by name."""
    launch = WorkLaunch(a.work, a.partials, WorkCapacity(*a.capacity), a.num_items, a.num_merges)
    options = AttentionOptions(
        a.q.shape[2] ** -0.5 if a.scale is None else a.scale,
        0 if a.window is None else min(a.window, 2**30),
        a.logits_soft_cap or 0.0,
        a.sinks,
        a.alibi_slopes,
        0 if a.attention_chunk is None else min(a.attention_chunk, 2**30),
    )
    if a.mask is None and a.scales is None and options.slopes is None and not options.chunk:
        kernel("tree_attention", a.k_pages)(a.q, a.k_pages, a.v_pages, launch, options, a.out, a.lse)
    else:
        attend = kernel("sparse_attention", a.k_pages)
        attend(a.q, a.k_pages, a.v_pages, launch, options, a.out, a.lse, a.mask, a.scales)
    mass = getattr(a, "mass", None)
    if mass is not None:
        kernel("page_mass", a.k_pages)(a.q, a.k_pages, launch, options, a.mask, mass, a.scales)
