"""A TreePlan's tensors: how operators describe them, and what the CPU kernels need to know of them.

The kernels look at every index themselves (csrc/cpu/check_plan.cpp).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import _core
from ..checks import Array, Number, Rule, instance
from ..checks.pages import INT32, PAGE_SIZE
from .tree_plan import TreePlan

PLAN_ARRAYS = (
    Array("query_order", "T", INT32),
    Array("query_position", "T", INT32),
    Array("blocks", "num_blocks, 4", INT32),
    Array("segments", "num_segments, 5", INT32),
    Array("pages", "num_listed", INT32),
)
# Most pages that a query sees: it sees none that no segment lists.
COLUMNS = (Number("columns", "columns >= 0"), Rule("plan.max_columns", "columns <= num_listed"))
PLAN_NAMES = tuple(array.name for array in PLAN_ARRAYS)


def plan_tensors(plan: TreePlan) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return plan.query_order, plan.query_position, plan.blocks, plan.segments, plan.pages


def packed_plan(plan: Any) -> TreePlan:
    """A TreePlan for packed pages."""
    instance(
        "plan",
        plan,
        TreePlan,
        "make it with tts_kernels.plan, or for plain pages a DevicePlan with DevicePlanner(...).update(...)",
    )
    known: TreePlan = plan
    if known.page_size != PAGE_SIZE:
        raise ValueError(
            f"plan.page_size: got {known.page_size}, expected {PAGE_SIZE}; plan with page_size=16"
        )
    return known


def plan_view(
    query_order: Tensor, query_position: Tensor, blocks: Tensor, segments: Tensor, pages: Tensor
) -> _core.PlanView:
    """What C++ needs to know of a TreePlan's tensors, which outlive the view."""
    return _core.PlanView(
        query_order.data_ptr(),
        query_position.data_ptr(),
        query_order.shape[0],
        blocks.data_ptr(),
        blocks.shape[0],
        segments.data_ptr(),
        segments.shape[0],
        pages.data_ptr(),
        pages.shape[0],
    )
