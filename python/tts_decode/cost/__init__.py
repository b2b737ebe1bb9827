"""Flops and bytes: of a forward from its counts, and of a search from its sizes."""

from .forward import (
    KINETICS_INTENSITY,
    Machine,
    ModelShape,
    SparseCounts,
    StepCost,
    StepCounts,
    Work,
    attended_pairs,
    step_cost,
)
from .search import SearchCost, SparseBudget, search_cost

__all__ = [
    "KINETICS_INTENSITY",
    "Machine",
    "ModelShape",
    "SearchCost",
    "SparseBudget",
    "SparseCounts",
    "StepCost",
    "StepCounts",
    "Work",
    "attended_pairs",
    "search_cost",
    "step_cost",
]
