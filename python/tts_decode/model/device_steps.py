"""Runs one step of the batch on a GPU: everything is queued, nothing waits; decode steps are CUDA graphs."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tts_kernels import CapacityError, DevicePlanner, KVPool, WorkCapacity
from tts_kernels.plans.device_planner import num_multiprocessors

from ..errors import TTSError
from .hf import HFEngine, Inputs, Output
from .host_steps import StepInputs, distinct_pages
from .sparse import SparseStep
from .transfer import pinned, to_device
from .tree_attention import StepContext

# Branches of a decode step that one graph serves; a step is padded to the next size. Padding costs little if
# the weights are read once for all rows, and every graph costs memory and a capture. Not measured yet.
_BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)


class DeviceSteps:
    """Runs steps on the model's device.

    Args:
        max_batch_tokens: maximum number of tokens in one step.
        graphs: capture decode steps as CUDA graphs.

    Steps that read only part of the pages are not captured.
    """

    def __init__(
        self,
        engine: HFEngine,
        pool: KVPool,
        *,
        max_batch_tokens: int,
        graphs: bool,
    ) -> None:
        self._engine = engine
        self._pool = pool
        self._planner = make_planner(engine, pool)
        self._graphs = DecodeGraphs(engine, pool, max_batch_tokens) if graphs else None

    def run(self, step: StepInputs, *, hidden: bool) -> Output:
        """Queues the step on the current stream; K and V of its tokens go to the pool."""
        if len(step.copies):
            self._pool.copy(to_device(torch.from_numpy(step.copies), self._engine.device))
        decoding = len(step.tokens) == len(step.counts) == len(step.rows) and step.embeds is None
        plain = not hidden and step.reads is None and not step.kept_rows
        if self._graphs is not None and decoding and plain:
            logits = self._graphs.run(step)
            if logits is not None:
                return Output(logits, None, pages=self._pages(step))
        device = self._engine.device
        plan = self._planner.update(step.tables, step.lengths, step.counts)
        sparse = None
        if step.reads is not None:
            sparse = SparseStep(plan, step.reads.to(device))
        slots = to_device(torch.from_numpy(step.slots), device)
        context = StepContext(self._pool, slots, plan, sparse=sparse)
        tokens, positions = to_device(torch.tensor([step.tokens, step.positions]), device).unbind()
        rows = to_device(torch.tensor(step.rows, dtype=torch.long), device)
        kept = step.layer_states(device)
        output = self._engine.forward(Inputs(tokens, positions, rows, hidden, step.embeds, kept), context)
        if kept is not None:
            output = output._replace(layers=kept.stacked())
        pages = self._pages(step)
        if sparse is None or step.reads is None:
            return output._replace(pages=pages)
        columns = np.repeat(-(-step.lengths // self._pool.page_size), step.counts)
        read = int(np.minimum(step.reads.budgets.numpy(), columns).sum())
        return output._replace(
            pages=pages, sparse=sparse.counts_by_budget(read, pages, self._pool.num_kv_heads)
        )

    def _pages(self, step: StepInputs) -> int:
        """Counts pages after the step is queued, while the device works on it."""
        return distinct_pages(step.tables, step.lengths, self._pool.num_pages, self._pool.page_size)


class DecodeGraphs:
    """Forwards of one new token per branch, captured once for each batch size and replayed.

    A graph reads its inputs, the attention's work list and the pages in place; each step writes new inputs
    there. Rows beyond the step's branches are padding: their K and V are not stored.
    """

    def __init__(self, engine: HFEngine, pool: KVPool, max_batch_tokens: int) -> None:
        self._engine = engine
        self._pool = pool
        self._sizes = [size for size in _BUCKETS if size <= max_batch_tokens]
        self._workspace: Tensor | None = None  # the graphs run one at a time and share it
        self._buckets: dict[int, _Bucket] = {}
        self._placing = engine.weights.placing
        self._on_gpu = engine.device.type == "cuda"
        if self._on_gpu:
            self._memory = torch.cuda.graph_pool_handle()
            self._stream = torch.cuda.Stream(engine.device)  # of all captures

    def run(self, step: StepInputs) -> Tensor | None:
        """Returns logits float32 [T, vocab] of the step; None if no graph serves it."""
        if self._placing != self._engine.weights.placing:
            self._forget()
        count = len(step.tokens)
        size = next((size for size in self._sizes if size >= count), None)
        if size is None:
            return None
        bucket = self._buckets.get(size) or self._add(size)
        try:
            plan = bucket.planner.update(step.tables, step.lengths)
        except CapacityError:
            return None
        inputs = np.zeros((3, size), dtype=np.int64)
        inputs[2] = -1
        inputs[:, :count] = step.tokens, step.positions, step.slots
        bucket.inputs.copy_(pinned(torch.from_numpy(inputs), self._engine.device), non_blocking=True)
        if bucket.replay is None:

            def forward() -> Tensor:
                tokens, positions, slots = bucket.inputs.unbind()
                context = StepContext(self._pool, slots.int(), plan)
                return self._engine.forward(Inputs(tokens, positions), context).logits

            try:
                bucket.replay = self._capture(forward)
            except NotCapturableError as error:
                warnings.warn(
                    f"the model's decode step cannot be captured as a CUDA graph and runs slower without: "
                    f"{error}",
                    stacklevel=2,
                )
                self._sizes, self._workspace = [], None
                self._buckets.clear()
                return None
        return bucket.replay()[:count].to(torch.float32, copy=True)

    def _forget(self) -> None:
        """Drops all graphs: they read the weights at their old addresses."""
        self._placing = self._engine.weights.placing
        self._buckets.clear()
        if self._on_gpu:
            self._memory = torch.cuda.graph_pool_handle()  # the memory of the old one went with its graphs

    def _add(self, size: int) -> _Bucket:
        if self._workspace is None:
            most = _capacity(self._engine, self._pool, self._sizes[-1])
            num_bytes = most.workspace_bytes(self._pool.num_kv_heads, self._pool.head_dim)
            self._workspace = torch.empty(num_bytes, dtype=torch.uint8, device=self._engine.device)
        capacity = _capacity(self._engine, self._pool, size)
        self._buckets[size] = _Bucket(
            make_planner(self._engine, self._pool, capacity=capacity, workspace=self._workspace),
            torch.zeros((3, size), dtype=torch.int64, device=self._engine.device),
        )
        return self._buckets[size]

    def _capture(self, forward: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Returns the captured forward, after two plain runs, which write the same K and V each time."""
        if not self._on_gpu:
            return forward
        device = self._engine.device
        with torch.cuda.device(device):
            current = torch.cuda.current_stream()
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                forward()
                forward()
            current.wait_stream(self._stream)
            graph, logits = self._record(forward)

        def replay() -> Tensor:
            with torch.cuda.device(device):
                graph.replay()
            return logits

        return replay

    def _record(self, forward: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream()
        try:
            with torch.cuda.graph(
                graph, pool=self._memory, stream=self._stream, capture_error_mode="thread_local"
            ):
                return graph, forward()
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise NotCapturableError(str(error)) from error
        finally:
            torch.cuda.set_stream(current)  # a failed capture leaves its own


class NotCapturableError(TTSError, RuntimeError):
    """The forward does something that no CUDA graph can hold, such as waiting for the device."""


class _Bucket:
    """What one graph reads: inputs int64 [3, size] (token, position, slot or -1), and its planner's plans."""

    def __init__(self, planner: DevicePlanner, inputs: Tensor) -> None:
        self.planner = planner
        self.inputs = inputs
        self.replay: Callable[[], Tensor] | None = None


def make_planner(
    engine: HFEngine,
    pool: KVPool,
    capacity: WorkCapacity | None = None,
    workspace: Tensor | None = None,
) -> DevicePlanner:
    """Makes a planner for the engine's attention over the pool's pages; see `DevicePlanner` for the rest."""
    return DevicePlanner(
        num_q_heads=engine.kv_shape.num_q_heads,
        num_kv_heads=pool.num_kv_heads,
        head_dim=pool.head_dim,
        page_size=pool.page_size,
        num_pages=pool.num_pages,
        dtype=pool.dtype,
        device=engine.device,
        capacity=capacity,
        workspace=workspace,
    )


def _capacity(engine: HFEngine, pool: KVPool, size: int) -> WorkCapacity:
    return WorkCapacity.for_queries(
        size,
        num_q_heads=engine.kv_shape.num_q_heads,
        num_kv_heads=pool.num_kv_heads,
        num_pages=pool.num_pages,
        page_size=pool.page_size,
        num_sms=num_multiprocessors(engine.device),
    )
