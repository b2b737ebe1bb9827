"""Attention over plain pages by the work list of a DevicePlan: torch.ops.tts_kernels.tree_attention.work."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tts_kernels import backend
from tts_kernels.device_plan import AttentionOptions, DevicePlan, WorkCapacity, WorkLaunch, WorkLayout
from tts_kernels.ops._common import check_devices, check_mask, check_rows, check_scales, register
from tts_kernels.ops._paged import check_plain_pages


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
    given = {name: t for name, t in (("selection", mask), ("scales", scales)) if t is not None}
    check_devices(q=q, k_pages=k_pages, v_pages=v_pages, plan=work, partials=partials, **given)
    pages, queries = k_pages.shape, q.shape
    if not (
        pages[1:] == (plan.num_kv_heads, plan.page_size, plan.head_dim)
        and pages[0] >= plan.num_pages
        and queries[1:] == (plan.num_q_heads, plan.head_dim)
        and queries[0] >= plan.num_queries
        and k_pages.dtype is plan.dtype
    ):
        _refuse_shapes(q, k_pages, plan)
    if mask is not None and mask.dim() == 3 and 32 * mask.shape[2] < plan.max_columns:
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
        out, lse, mass = torch.ops.tts_kernels.tree_attention.work_mass(*arguments, plan.max_columns)
        return out, lse, mass
    out, lse = torch.ops.tts_kernels.tree_attention.work(*arguments)
    return out, lse


def _refuse_shapes(q: Tensor, k_pages: Tensor, plan: DevicePlan) -> None:
    if k_pages.dtype != plan.dtype:
        raise TypeError(f"k_pages: got {k_pages.dtype}, expected {plan.dtype} as planned")
    expected_pages = f"[>= {plan.num_pages}, {plan.num_kv_heads}, {plan.page_size}, {plan.head_dim}]"
    expected_q = f"[>= {plan.num_queries}, {plan.num_q_heads}, {plan.head_dim}]"
    if k_pages.shape[1:] != (plan.num_kv_heads, plan.page_size, plan.head_dim) or (
        k_pages.shape[0] < plan.num_pages
    ):
        raise ValueError(f"k_pages: got shape {list(k_pages.shape)}, expected {expected_pages} as planned")
    raise ValueError(f"q: got shape {list(q.shape)}, expected {expected_q} as planned")


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
    check_plain_pages(k_pages, v_pages)
    check_scales(scales, k_pages)
    _, num_kv_heads, _, head_dim = k_pages.shape
    check_rows("q", q, None, head_dim, k_pages.dtype)
    tokens, num_q_heads, _ = q.shape
    if num_q_heads == 0 or num_q_heads % num_kv_heads != 0:
        raise ValueError(
            f"q: got {num_q_heads} heads, expected a multiple of the {num_kv_heads} KV heads of the pages"
        )
    if not 0 < scale < math.inf:
        raise ValueError(f"scale: got {scale}, expected a finite number > 0")
    if not 0 <= logits_soft_cap < math.inf:
        raise ValueError(
            f"logits_soft_cap: got {logits_soft_cap}, expected a finite number > 0, or 0 for none"
        )
    launch = _work_launch(work, partials, capacity, num_items, num_merges, num_kv_heads, head_dim)
    if mask is not None:
        check_mask(mask, num_kv_heads, tokens)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = torch.empty((tokens, num_q_heads), dtype=torch.float32, device=q.device)
    options = AttentionOptions(scale, min(window, 2**30), logits_soft_cap)
    if mask is None and scales is None:
        backend.kernel("tree_attention", k_pages)(q, k_pages, v_pages, launch, options, out, lse)
    else:
        attend = backend.kernel("sparse_attention", k_pages)
        attend(q, k_pages, v_pages, launch, options, out, lse, mask, scales)
    if mass is not None:
        backend.kernel("page_mass", k_pages)(q, k_pages, launch, options, mask, mass, scales)
    return out, lse


def _tree_attention_work_mass(
    q: Tensor, k_pages: Tensor, v_pages: Tensor, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    mass = torch.empty((k_pages.shape[1], q.shape[0], options[-1]), dtype=torch.float32, device=q.device)
    attend: Callable[..., tuple[Tensor, Tensor]] = _tree_attention_work
    out, lse = attend(q, k_pages, v_pages, *options[:-1], mass=mass)
    return out, lse, mass


def _work_launch(
    work: Tensor,
    partials: Tensor,
    capacity: list[int],
    num_items: int,
    num_merges: int,
    num_kv_heads: int,
    head_dim: int,
) -> WorkLaunch:
    """Checks that a launch stays inside the buffers, as far as the host can see."""
    if len(capacity) != 5 or min(capacity) < 0:
        raise ValueError(f"capacity: got {capacity}, expected 5 numbers >= 0 (see WorkCapacity)")
    known = WorkCapacity(*capacity)
    if not (0 <= num_items <= known.items and 0 <= num_merges <= known.queries):
        raise ValueError(
            f"num_items, num_merges: got {num_items} and {num_merges}, expected at most the capacity of "
            f"{known.items} items and {known.queries} queries"
        )
    partial_floats = num_kv_heads * known.partials * (head_dim + 1)
    for name, buffer, dtype, size in (
        ("work", work, torch.int32, WorkLayout.of(known).end),
        ("partials", partials, torch.float32, partial_floats),
    ):
        if buffer.dtype is not dtype:
            raise TypeError(f"{name}: got {buffer.dtype}, expected {dtype}")
        if buffer.dim() != 1 or buffer.shape[0] < size or not buffer.is_contiguous():
            raise ValueError(
                f"{name}: got shape {list(buffer.shape)} and strides {buffer.stride()}, expected one "
                f"dimension of at least {size} contiguous elements for {known}"
            )
    return WorkLaunch(work, partials, known, num_items, num_merges)


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
register(
    f"tree_attention.work_mass{_ARGUMENTS}Tensor? mask, Tensor? scales, int columns) "
    "-> (Tensor out, Tensor lse, Tensor mass)",
    cpu=_tree_attention_work_mass,
    cuda=_tree_attention_work_mass,
    fake=_tree_attention_work_mass_fake,
)
register(
    f"tree_attention.work{_ARGUMENTS}Tensor? mask=None, Tensor? scales=None) -> (Tensor out, Tensor lse)",
    cpu=_tree_attention_work,
    cuda=_tree_attention_work,
    fake=_tree_attention_work_fake,
)
