"""Attention of one layer over packed pages: appends and attends in one call."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .. import _core
from ..checks import Array, Guard, Rule, Signature, integer, real
from ..checks.pages import INT32, PLAN, kind_of_pages, page_arrays, row_dtypes
from ..plans.tree_plan import TreePlan, packed_plan
from .tree_attention import OPTIONS


def append_and_attend(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    plan: TreePlan,
    out: Tensor,
    *,
    new: tuple[Tensor, Tensor, Tensor] | None,
    scale: float,
    window: int | None = None,
    logits_soft_cap: float | None = None,
) -> None:
    """Gives bit for bit the results of `append_kv` and then `tree_attention`, without the time between them.

    Args:
        q: [T, num_q_heads, head_dim]; contiguous channels, any other strides.
        k_pages, v_pages: one layer of packed pages, float32 or bfloat16 like all other tensors; changed in
            place.
        plan, scale, window, logits_soft_cap: same as for `tree_attention`.
        out: [T, num_q_heads, head_dim], contiguous; written.
        new: k, v, slots as for `append_kv`; None appends nothing.

    Raises:
        TypeError, ValueError: same as both operators. Nothing has been written.
    """
    scale = real("scale", scale)
    if window is not None:
        window = integer("window", window, 1)
    if logits_soft_cap is not None:
        logits_soft_cap = real("logits_soft_cap", logits_soft_cap)
    if type(plan) is not TreePlan:
        plan = packed_plan(plan)
    k, v, slots = _NOTHING if new is None else new
    tensors = (q, k, v, k_pages, v_pages, slots, plan.buffer, out)
    args = (*tensors, scale, window, logits_soft_cap)
    if _STEP.look(args) is None:
        _STEP.settle(args)
    _core.append_and_attend(
        *tensors,
        scale,
        0 if window is None else min(window, 2**30),
        logits_soft_cap or 0.0,
        torch.get_num_threads(),
    )
    torch.autograd.graph.increment_version((out,) if new is None else (out, k_pages, v_pages))


_NOTHING = (None, None, None)


@lru_cache
def _describe(dtype: torch.dtype, append: bool) -> Signature:
    rows = "T, num_kv_heads, head_dim"
    absent = "" if append else "nothing is appended, as slots is None"
    return Signature(
        *page_arrays(dtype, plain=False, written=append),
        Array("q", "T, num_q_heads, head_dim", row_dtypes(dtype), packed=1),
        Rule("q", "num_q_heads >= 1 and num_q_heads % num_kv_heads == 0"),
        Array("k", rows, row_dtypes(dtype), packed=1, absent=absent),
        Array("v", rows, row_dtypes(dtype), packed=1, absent=absent),
        Array("slots", "T", INT32, absent=absent),
        PLAN,
        Array("out", "T, num_q_heads, head_dim", row_dtypes(dtype), written=True),
        *OPTIONS,
        home="k_pages",
    )


def _step_of(values: Mapping[str, Any]) -> Signature:
    dtype, plain = kind_of_pages(values)
    if plain or dtype.itemsize == 1:
        raise ValueError("k_pages, v_pages: got plain or 8-bit pages, expected packed float32 or bfloat16")
    return _describe(dtype, values["slots"] is not None)


_STEP = Guard(
    "append_and_attend",
    ("q", "k", "v", "k_pages", "v_pages", "slots", "plan", "out", "scale", "window", "logits_soft_cap"),
    _step_of,
)
