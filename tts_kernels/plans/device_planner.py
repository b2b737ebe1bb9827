"""Plans on the host for a GPU, step after step, without waiting."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from torch import Tensor

from .. import _core
from ..backends.choice import max_tile_height
from ..backends.launch import WorkCapacity, check_group, check_sizes, round_up
from ..checks import empty, shown
from ..checks.pages import check_plain
from ..device import checked_device
from ..errors import CapacityError
from .device_plan import DevicePlan
from .tree_plan import Int32Array, int32_array

_log = logging.getLogger(__name__)
_STAGES = 4  # updates in flight to the device before the host waits for the first of them


class DevicePlanner:
    """Plans the attention calls of one model on one device, step after step.

    Finds what branches share from their block tables, as `plan` does. A cost model (bytes, floating-point
    operations, partial results, launches) chooses what to read once, what to read again below a fork, and
    where to split long runs. If only tails grew since the last update, the plan is advanced in place.

    Args:
        num_q_heads, num_kv_heads, head_dim: of the layers.
        dtype: of the pages.
        page_size: tokens of a page.
        num_pages: of the pool; page ids from there on are refused.
        device: where the plans go.
        capacity: None lets the buffers grow with the plans. A capacity fixes them: every plan lies in the
            same memory and launches the same grid, so a CUDA graph captured with one plan replays with
            whatever the last update planned.
        max_columns: with a capacity, the most pages of a branch: P of scores and selections, whose memory a
            captured graph also keeps. Default: num_pages. Without a capacity, each plan has its own.
        workspace: memory for those buffers, a contiguous uint8 tensor on the device of at least
            `capacity.workspace_bytes(num_kv_heads, head_dim)` bytes; default: the planner's own.
        branch_invariant: gives a branch the same bits whatever its siblings are and however its prefix is
            shared. This fixes the chunks of a path, which are then shared less and split less well.

    Attributes:
        advanced: whether the last update only advanced the previous plan.

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
        max_columns: int | None = None,
        workspace: Tensor | None = None,
        branch_invariant: bool = False,
    ) -> None:
        check_sizes(
            num_q_heads=num_q_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            page_size=page_size,
            num_pages=num_pages,
        )
        group = check_group(num_q_heads, num_kv_heads)
        if num_pages > 2**31 // page_size:
            raise ValueError(
                f"num_pages: got {num_pages}, expected at most {2**31 // page_size} (slots are int32)"
            )
        check_plain(head_dim, dtype)
        if workspace is not None and capacity is None:
            raise ValueError("workspace: got one without a capacity, which it is for; pass capacity too")
        if max_columns is not None:
            check_sizes(max_columns=max_columns)
            if capacity is None:
                raise ValueError(
                    f"max_columns: got {max_columns} without a capacity, which it is for; pass capacity too"
                )
        self.device = checked_device(device)
        self.dtype = dtype
        self.num_q_heads, self.num_kv_heads, self.head_dim = num_q_heads, num_kv_heads, head_dim
        self.page_size, self.num_pages = page_size, num_pages
        self._fixed = capacity is not None
        self._max_columns = num_pages if max_columns is None else max_columns
        self._core = _core.WorkPlanner(
            num_kv_heads,
            group,
            head_dim,
            dtype.itemsize,
            max_tile_height(head_dim, dtype, self.device),
            num_multiprocessors(self.device),
            page_size,
            num_pages,
            branch_invariant,
        )
        self.advanced = False
        self._plan: DevicePlan | None = None
        self._next_stage = 0
        self._allocate(WorkCapacity(*[16] * 5) if capacity is None else _checked(capacity), workspace)

    def update(
        self,
        block_tables: Tensor | Int32Array,
        lengths: Tensor | Int32Array,
        query_lens: Tensor | Int32Array | None = None,
    ) -> DevicePlan:
        """Plans one call, for all layers of one step. Takes the arguments of `plan`, on the CPU.

        The work list is copied to the device on the current stream, after everything queued there, and
        replaces the previous one: use a plan before the next update, on that stream.

        Raises:
            TypeError, ValueError: an argument is out of range.
            CapacityError: the plan outgrew a fixed capacity. The previous plan stays as it was.
        """
        tables = int32_array("block_tables", block_tables)
        queries = None if query_lens is None else int32_array("query_lens", query_lens)
        known_lengths = int32_array("lengths", lengths)
        if self._fixed:
            self._check_columns(known_lengths)
        capacity = self.capacity if self._fixed else None
        plan, self._plan = self._plan, None  # until everything succeeded: memory to grow may run out
        advanced = self._core.update(tables, known_lengths, queries, self.page_size, capacity)
        if not advanced or plan is None:
            counts = WorkCapacity(*self._core.counts())
            if any(map(int.__gt__, counts, self.capacity)):
                grown = (2 * n if n > room else room for n, room in zip(counts, self.capacity, strict=True))
                self._allocate(WorkCapacity(*map(round_up, grown)), None)
                _log.info("the plan outgrew its buffers, which now have room for %s", self.capacity)
            plan = self._describe(counts)
        elif not self._fixed and plan.max_columns != self._core.max_columns:
            plan = replace(plan, max_columns=self._core.max_columns)
        self._send()
        self._plan, self.advanced = plan, advanced
        return plan

    def _check_columns(self, lengths: Int32Array) -> None:
        longest = int(lengths.max(initial=0))
        if longest > self._max_columns * self.page_size:
            raise CapacityError(
                f"max_columns: got {self._max_columns} pages of {self.page_size} tokens, but a branch has "
                f"{longest} tokens; plan with more (and capture graphs anew)"
            )

    def _describe(self, counts: WorkCapacity) -> DevicePlan:
        return DevicePlan(
            self._work,
            self._partials,
            self.capacity,
            self.capacity.items if self._fixed else counts.items,
            self.capacity.queries if self._fixed else counts.queries if counts.merges else 0,
            counts.queries,
            self._max_columns if self._fixed else self._core.max_columns,
            self.page_size,
            self.num_pages,
            self.num_q_heads,
            self.num_kv_heads,
            self.head_dim,
            self.dtype,
        )

    def _send(self) -> None:
        """Queues the copy of the plan to the device."""
        stage = self._stages[self._next_stage]
        self._next_stage = (self._next_stage + 1) % len(self._stages)
        if stage.copied is not None:
            stage.copied.synchronize()  # queued some steps ago
        used = self._core.write(stage.address, stage.buffer.numel(), self.capacity, stage.stamp)
        stage.stamp = self._core.stamp
        self._work[:used].copy_(stage.buffer[:used], non_blocking=True)
        if stage.copied is not None:
            stage.copied.record(torch.cuda.current_stream(self.device))

    def _allocate(self, capacity: WorkCapacity, workspace: Tensor | None) -> None:
        needed = capacity.workspace_bytes(self.num_kv_heads, self.head_dim)
        if workspace is None:
            workspace = empty("workspace", (needed,), torch.uint8, self.device)
        else:
            self._check_workspace(workspace, needed)
        ints = capacity.work_ints()
        stages = [_Stage(ints, self.device) for _ in range(_STAGES)]
        # Nothing has changed if memory ran out.
        self.capacity, self._stages = capacity, stages
        self._work = workspace[: 4 * ints].view(torch.int32)
        self._partials = workspace[4 * round_up(ints) : needed].view(torch.float32)

    def _check_workspace(self, workspace: Tensor, needed: int) -> None:
        if not isinstance(workspace, Tensor):
            raise TypeError(f"workspace: got {type(workspace).__name__}, expected a uint8 tensor")
        if workspace.dtype != torch.uint8 or workspace.device != self.device or not workspace.is_contiguous():
            raise TypeError(
                f"workspace: got {workspace.dtype} on {workspace.device}, expected a contiguous uint8 tensor "
                f"on {self.device}"
            )
        if workspace.numel() < needed or workspace.data_ptr() % 64:
            raise ValueError(
                f"workspace: got {workspace.numel()} bytes at an address % 64 = {workspace.data_ptr() % 64}, "
                f"expected at least {needed} at a multiple of 64; capacity.workspace_bytes says how many"
            )


class _Stage:
    """Page-locked host memory that a plan is copied from, and the event at the end of the copy."""

    def __init__(self, ints: int, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self.buffer = empty("plan", (ints,), torch.int32, pinned=on_gpu)
        self.address = self.buffer.data_ptr()
        self.copied = torch.cuda.Event() if on_gpu else None
        self.stamp = 0


def _checked(capacity: WorkCapacity) -> WorkCapacity:
    if not isinstance(capacity, WorkCapacity):
        raise TypeError(f"capacity: got {type(capacity).__name__}, expected a WorkCapacity")
    for name, value in capacity._asdict().items():
        if not isinstance(value, int):
            raise TypeError(f"capacity.{name}: got {shown(value)}, expected an int")
        if value < 16 or value % 16:
            raise ValueError(f"capacity.{name}: got {value}, expected a positive multiple of 16")
    return capacity


def num_multiprocessors(device: torch.device) -> int:
    """Returns a GPU's number of multiprocessors; for the CPU, a small number that keeps plans small."""
    if device.type != "cuda":
        return 16
    return torch.cuda.get_device_properties(device).multi_processor_count
