"""The plan of attention calls on a GPU: a work list in device memory, and what it was planned for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..backends.launch import WorkCapacity, WorkLaunch
from ..checks import instance, integer


@dataclass(frozen=True, eq=False)
class DevicePlan:
    """Work list of `tree_attention` on a GPU, made by `DevicePlanner.update`.

    Attributes:
        work: int32, one buffer on the device, laid out as in csrc/common/work_records.h.
        partials: float32 [num_kv_heads * capacity.partials * (head_dim + 1)], written and read by each call.
        capacity: upper limits of `work` and `partials`.
        num_items: items that a launch covers for each KV head: the plan's, or, if a captured graph must serve
            later plans too, the most that they may have.
        num_merges: queries that the merging launch covers; 0 if no query needs it. For a captured graph, the
            most that later plans may have; rows of q past their queries become (0, -inf) up to this number.
        num_queries: T.
        max_columns: P, the most pages that a query sees; with a fixed capacity, the most that it may see.
        page_size: tokens of a page.
        num_pages: exclusive upper bound of the page ids.
        num_q_heads, num_kv_heads, head_dim, dtype: of the layers that it serves.
    """

    work: Tensor
    partials: Tensor
    capacity: WorkCapacity
    num_items: int
    num_merges: int
    num_queries: int
    max_columns: int
    page_size: int
    num_pages: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype

    def __post_init__(self) -> None:
        instance("plan.capacity", self.capacity, WorkCapacity, "take that of the planner")
        for name in ("num_items", "num_merges", "num_queries", "max_columns"):
            integer(f"plan.{name}", getattr(self, name), 0, 2**31 - 1)
        for name in ("page_size", "num_pages", "num_q_heads", "num_kv_heads", "head_dim"):
            integer(f"plan.{name}", getattr(self, name), 1, 2**31 - 1)
        instance("plan.dtype", self.dtype, torch.dtype, "take that of the planner")

    @property
    def launch(self) -> WorkLaunch:
        return WorkLaunch(self.work, self.partials, self.capacity, self.num_items, self.num_merges)
