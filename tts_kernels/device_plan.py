"""The plan of attention calls on a GPU: a work list in device memory, made on the host without a wait."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tts_kernels import _core, backend
from tts_kernels.plan import Int32Array, int32_array

_STAGES = 4  # updates that may be on their way to the device before the host waits for the first of them
_HEADER = 16  # ints


class WorkCapacity(NamedTuple):
    """How much a work list holds at most (csrc/common/work_records.h), each a multiple of 16.

    items: tiles of rows over runs of pages. queries: queries. merges: pairs of a query and a partial result.
    pages: entries of the items' page lists. partials: rows of partial results of one KV head.
    """

    items: int
    queries: int
    merges: int
    pages: int
    partials: int

    @classmethod
    def for_queries(
        cls,
        num_queries: int,
        *,
        num_q_heads: int,
        num_kv_heads: int,
        num_pages: int,
        page_size: int,
        num_sms: int = 132,
    ) -> WorkCapacity:
        """Room for decode steps of up to `num_queries` branches over a pool of `num_pages` pages.

        It leaves a device of `num_sms` multiprocessors room for the splits that keep it busy: some four tiles
        a multiprocessor, of 128 rows, beside four partial results a query, as on a path with four forks.
        """
        group = num_q_heads // num_kv_heads
        splits = 4 * -(-num_sms // num_kv_heads)
        items = 4 * num_queries * -(-group // 64) + splits
        partials = 4 * num_queries * group + 128 * splits
        pages = num_pages + num_queries * (64 + -(-64 // page_size))
        return cls(*map(_round_up, (items, num_queries, partials // group, pages, partials)))

    def work_ints(self) -> int:
        """Size of the work list, in int32."""
        return _HEADER + 8 * self.items + 3 * self.queries + 16 + self.merges + self.pages

    def partial_floats(self, num_kv_heads: int, head_dim: int) -> int:
        """Size of the partial results, in float32: outputs and log-sum-exps."""
        return num_kv_heads * self.partials * (head_dim + 1)

    def workspace_bytes(self, num_kv_heads: int, head_dim: int) -> int:
        """Size of a workspace that holds both."""
        return 4 * (_round_up(self.work_ints()) + self.partial_floats(num_kv_heads, head_dim))


class WorkLayout(NamedTuple):
    """Where the parts of a work list lie in its int32 buffer, as WorkLayout of csrc/common/work_records.h."""

    items: int
    query_order: int
    query_position: int
    merge_begin: int
    merge_base: int
    pages: int
    end: int

    @classmethod
    def of(cls, capacity: WorkCapacity) -> WorkLayout:
        items = 16
        query_order = items + 8 * capacity.items
        query_position = query_order + capacity.queries
        merge_begin = query_position + capacity.queries
        merge_base = merge_begin + capacity.queries + 16
        pages = merge_base + capacity.merges
        return cls(items, query_order, query_position, merge_begin, merge_base, pages, pages + capacity.pages)


class WorkLaunch(NamedTuple):
    """A work list as kernels take it; see `DevicePlan`."""

    work: Tensor
    partials: Tensor
    capacity: WorkCapacity
    num_items: int
    num_merges: int


class AttentionOptions(NamedTuple):
    """scale: factor of the logits. window: positions a query sees, 0 for all. soft_cap: 0.0 for none."""

    scale: float
    window: int
    soft_cap: float


@dataclass(frozen=True, eq=False)
class DevicePlan:
    """Work list of `tree_attention` on a GPU, made by `DevicePlanner.update`.

    Attributes:
        work: int32, one buffer on the device; csrc/common/work_records.h says what lies where.
        partials: float32 [num_kv_heads * capacity.partials * (head_dim + 1)], written and read by each call.
        capacity: what `work` and `partials` hold at most.
        num_items: items that a launch covers for each KV head: those of the plan, or, where a captured graph
            is to serve later plans too, the most that they may have.
        num_merges: queries that the merging launch covers; 0 where no query needs it.
        num_queries: T.
        page_size: tokens of a page. num_pages: all page ids are below.
        num_q_heads, num_kv_heads, head_dim: of the layers that it serves.
    """

    work: Tensor
    partials: Tensor
    capacity: WorkCapacity
    num_items: int
    num_merges: int
    num_queries: int
    page_size: int
    num_pages: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int

    @property
    def launch(self) -> WorkLaunch:
        return WorkLaunch(self.work, self.partials, self.capacity, self.num_items, self.num_merges)


class DevicePlanner:
    """Plans the attention calls of one model on one device, step after step.

    Finds what branches share from their block tables, as `plan` does, and chooses by a cost model (bytes,
    floating-point operations, partial results, launches) what to read once, what again below a fork, and
    where to split long runs. While all that changes between two updates is that tails grow, the plan is
    advanced in place.

    Args:
        num_q_heads, num_kv_heads, head_dim: of the layers. dtype: of the pages.
        page_size: tokens of a page. num_pages: of the pool; larger page ids are refused.
        device: where the plans go.
        capacity: None lets the buffers grow with the plans. Given, they are fixed: every plan lies in the
            same memory and launches the same grid, so that a CUDA graph captured with one of them replays
            with whatever the last update planned.
        workspace: memory for those buffers, a contiguous uint8 tensor on the device of at least
            `capacity.workspace_bytes(num_kv_heads, head_dim)` bytes; default: the planner's own.
        branch_invariant: gives a branch the same bits whatever its siblings are and however its prefix is
            shared. Chunks of the path are then fixed, and so shared less and split less well.

    Raises:
        TypeError, ValueError: an argument is out of range, or the workspace is too small.
    """

    def __init__(
        self,
        *,
        num_q_heads: int,
        num_kv_heads: int,
        head_dim: int,
        page_size: int,
        num_pages: int,
        dtype: torch.dtype,
        device: torch.device | str = "cuda",
        capacity: WorkCapacity | None = None,
        workspace: Tensor | None = None,
        branch_invariant: bool = False,
    ) -> None:
        sizes = {
            "num_q_heads": num_q_heads,
            "num_kv_heads": num_kv_heads,
            "head_dim": head_dim,
            "page_size": page_size,
            "num_pages": num_pages,
        }
        for name, value in sizes.items():
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name}: got {value!r}, expected an int")
            if value < 1:
                raise ValueError(f"{name}: got {value}, expected >= 1")
        if num_q_heads % num_kv_heads:
            raise ValueError(
                f"num_q_heads: got {num_q_heads}, expected a multiple of num_kv_heads = {num_kv_heads}"
            )
        if num_pages > 2**31 // page_size:
            raise ValueError(
                f"num_pages: got {num_pages}, expected at most {2**31 // page_size} (slots are int32)"
            )
        self.device = torch.empty(0, device=device).device  # "cuda" names the current one
        self.num_q_heads, self.num_kv_heads, self.head_dim = num_q_heads, num_kv_heads, head_dim
        self.page_size, self.num_pages = page_size, num_pages
        self._fixed = capacity is not None
        self._core = _core.WorkPlanner(
            num_kv_heads,
            num_q_heads // num_kv_heads,
            head_dim,
            dtype.itemsize,
            backend.max_tile_height(head_dim, dtype, self.device),
            _num_sms(self.device),
            page_size,
            num_pages,
            branch_invariant,
        )
        self._allocate(WorkCapacity(*[16] * 5) if capacity is None else _checked(capacity), workspace)

    def update(
        self,
        block_tables: Tensor | Int32Array,
        lengths: Tensor | Int32Array,
        query_lens: Tensor | Int32Array | None = None,
    ) -> DevicePlan:
        """Plans one call, for all layers of one step. Arguments as of `plan`, on the CPU.

        The work list is copied to the device on the current stream, behind what is queued there, and takes
        the place of the one before: use a plan before the next update, on that stream.

        Raises:
            TypeError, ValueError: an argument is out of range.
            CapacityExceeded: the plan outgrew a fixed capacity. The plan before stays as it was.
        """
        tables = int32_array("block_tables", block_tables)
        queries = (
            np.ones(tables.shape[:1], np.int32)
            if query_lens is None
            else int32_array("query_lens", query_lens)
        )
        capacity = self.capacity if self._fixed else None
        counts = self._core.update(tables, int32_array("lengths", lengths), queries, self.page_size, capacity)
        if capacity is None and any(map(int.__gt__, counts, self.capacity)):
            grown = (2 * n if n > room else room for n, room in zip(counts, self.capacity, strict=True))
            self._allocate(WorkCapacity(*map(_round_up, grown)), None)
        self._send()
        items, num_queries, merges, _, _ = counts
        return DevicePlan(
            self._work,
            self._partials,
            self.capacity,
            self.capacity.items if self._fixed else items,
            (self.capacity.queries if self._fixed else num_queries) if self._fixed or merges else 0,
            num_queries,
            self.page_size,
            self.num_pages,
            self.num_q_heads,
            self.num_kv_heads,
            self.head_dim,
        )

    @property
    def advanced(self) -> bool:
        """True if the last update only advanced the plan before it."""
        return self._core.advanced

    def _send(self) -> None:
        stage = self._stages[self._stage]
        event = self._events[self._stage] if self._events else None
        self._stage = (self._stage + 1) % len(self._stages)
        if event is not None:
            event.synchronize()  # the copy before the last few
        used = self._core.write(stage.data_ptr(), stage.numel(), self.capacity)
        self._work[:used].copy_(stage[:used], non_blocking=True)
        if event is not None:
            event.record(torch.cuda.current_stream(self.device))

    def _allocate(self, capacity: WorkCapacity, workspace: Tensor | None) -> None:
        needed = capacity.workspace_bytes(self.num_kv_heads, self.head_dim)
        if workspace is None:
            workspace = torch.empty(needed, dtype=torch.uint8, device=self.device)
        elif (
            workspace.dtype != torch.uint8 or workspace.device != self.device or not workspace.is_contiguous()
        ):
            raise TypeError(
                f"workspace: got {workspace.dtype} on {workspace.device}, expected a contiguous uint8 tensor "
                f"on {self.device}"
            )
        elif workspace.numel() < needed or workspace.data_ptr() % 64:
            raise ValueError(
                f"workspace: got {workspace.numel()} bytes at an address % 64 = {workspace.data_ptr() % 64}, "
                f"expected at least {needed} at a multiple of 64; capacity.workspace_bytes says how many"
            )
        ints = capacity.work_ints()
        self._work = workspace[: 4 * ints].view(torch.int32)
        self._partials = workspace[4 * _round_up(ints) : needed].view(torch.float32)
        self.capacity = capacity
        pinned = self.device.type == "cuda"
        self._stages = [torch.empty(ints, dtype=torch.int32, pin_memory=pinned) for _ in range(_STAGES)]
        self._events = [torch.cuda.Event() for _ in self._stages] if pinned else []
        self._stage = 0


def _checked(capacity: WorkCapacity) -> WorkCapacity:
    for name, value in capacity._asdict().items():
        if value < 16 or value % 16:
            raise ValueError(f"capacity.{name}: got {value}, expected a positive multiple of 16")
    return capacity


def _round_up(n: int) -> int:
    return -(-max(n, 1) // 16) * 16


def _num_sms(device: torch.device) -> int:
    if device.type != "cuda":
        return 16
    return torch.cuda.get_device_properties(device).multi_processor_count
