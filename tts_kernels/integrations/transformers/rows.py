"""The rows of a batch as branches of one tree of KV pages."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import RLock, get_ident

import numpy as np
import torch
from torch import Tensor, nn

from ... import DevicePlan, DevicePlanner, KVPool, KVTree, OutOfPagesError, TreePlan, plan
from ...pool import default_bytes
from .appending import Writes, append, new_tokens
from .errors import UnsupportedError
from .masks import StepMask
from .origins import Int32Array, Int64Array, Origin
from .support import (
    refuse_head_size,
    refuse_less_than_a_page,
    refuse_other_model,
    refuse_other_pages,
    refuse_other_rows,
    refuse_tensors,
)


@dataclass(slots=True)
class Step:
    """A running forward: S new columns of B rows, T of whose B * S positions hold tokens.

    kept: int64 [T], the positions that hold them; None: all. before: tokens of each row when it began.
    created: whether the rows began with it. thread: that runs it. starts: `Rows.starts` after it. layer: the
    next one.
    """

    columns: int
    kept: Tensor | None
    writes: Writes
    plan: TreePlan | DevicePlan
    before: list[int]
    created: bool
    thread: int
    origin: Origin
    starts: Int64Array | None
    layer: int = 0


class Rows:
    """Branches of a tree, one for each row of a batch that may be padded on the left; padding is not stored.

    columns: tokens of a row including padding, as transformers counts. branches: one per row, none before the
    first forward. tree, pool: made in the first forward, which shows what a page must hold. The tree has the
    tokens' ids, UNKNOWN if a forward got none. starts: int64 [rows], the position of each row's first token;
    the others follow consecutively; None: unknown.

    A forward's additions count once its last layer is done. The next call takes back those of a forward that
    ended early. Layers of forwards in several threads take turns, and all but the last to begin raise.
    """

    def __init__(self, num_layers: int, kv_bytes: int | None, layout: str | None, share: bool) -> None:
        self.columns = 0
        self.branches: list[int] = []
        self.tree: KVTree | None = None
        self.pool: KVPool | None = None
        self.starts: Int64Array | None = None
        self.num_layers = num_layers
        self._kv_bytes, self._layout, self._share = kv_bytes, layout, share
        self._planner: DevicePlanner | None = None
        self._filled_by: Callable[[], nn.Module | None] = lambda: None  # a weak reference to Origin.module
        self._step: Step | None = None
        self._turn = RLock()

    @property
    def in_forward(self) -> bool:
        """Whether a forward is running, or ended early."""
        return self._step is not None

    def lengths(self) -> list[int]:
        """Returns the tokens of each row that count."""
        if self._step is not None:
            return self._step.before
        return [] if self.tree is None else [self.tree.length(branch) for branch in self.branches]

    def attend(
        self,
        layer: int,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: StepMask,
        origin: Origin,
        *,
        scale: float | None,
        soft_cap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        """Stores keys and values [B, num_kv_heads, S, head_dim], and attends with queries.

        Queries [B, num_q_heads, S, head_dim] give [B, S, num_q_heads, head_dim].
        """
        with self._turn:
            try:
                if layer == 0:
                    self.settle()
                    self._step = self._begin(query, keys, values, mask, origin)
                return self._attend(layer, query, keys, values, mask.window, scale, soft_cap, sinks)
            except BaseException:
                self.settle(get_ident())
                raise

    def _attend(
        self,
        layer: int,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        window: int | None,
        scale: float | None,
        soft_cap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        step, pool = self._step, self.pool
        if step is not None and step.thread != get_ident():
            raise UnsupportedError(
                "cache: got forwards of two threads at once, expected one after the other; make a TreeCache "
                "for each thread"
            )
        if step is None or pool is None or step.layer != layer or step.columns != keys.shape[2]:
            raise UnsupportedError(
                f"layer: got {layer}, expected {0 if step is None else step.layer}; TreeCache serves models "
                "whose layers each run once, one after the other, and is not looked at or changed in between"
            )
        refuse_other_pages(layer, keys, pool)
        batch, heads, columns, head_dim = query.shape
        q, k, v = (_tokens(rows, step.kept) for rows in (query, keys, values))
        writes = step.writes
        if writes.borrowed is not None:
            writes.borrowed.check(layer, k, v)
        if writes.tokens is not None:
            k, v = k[writes.tokens], v[writes.tokens]
        pool.append(layer, k, v, writes.slots)
        out, _ = pool.attend(
            layer, q, step.plan, scale=scale, window=window, logits_soft_cap=soft_cap, sinks=sinks
        )
        if step.kept is not None:
            places = out.new_zeros((batch * columns, heads, head_dim))
            out = places.index_copy_(0, step.kept, out)
        step.layer += 1
        if step.layer == self.num_layers:
            self.columns, self.starts, self._step = self.columns + columns, step.starts, None
            self._filled_by = weakref.ref(step.origin.module)
        return out.view(batch, columns, heads, head_dim)

    def settle(self, thread: int | None = None) -> None:
        """Takes back the additions of a forward that ended early. thread: only if it ran there."""
        with self._turn:
            step = self._step
            if step is not None and thread in (None, step.thread):
                self._step = None
                self._take_back(step.before, step.created)

    def _take_back(self, before: Sequence[int], created: bool) -> None:
        """Takes back additions. before, created: same as in `Step`."""
        if created:
            self.clear()
        elif self.tree is not None:
            for branch, length in zip(self.branches, before, strict=True):
                self.tree.truncate(branch, length)

    def clear(self) -> None:
        """Ends all rows."""
        self._step = None
        if self.tree is not None:
            for branch in self.branches:
                self.tree.release(branch)
        self.branches, self.columns, self.starts = [], 0, None

    def crop(self, columns: int) -> None:
        """Drops the last columns of all rows."""
        self.settle()
        columns = min(columns, self.columns)
        if self.tree is not None:
            for branch in self.branches:
                self.tree.truncate(branch, max(0, self.tree.length(branch) - columns))
        self.columns -= columns

    def select(self, indices: Sequence[int]) -> None:
        """Replaces row i by row indices[i]: forks rows that occur again, and ends unused ones."""
        self.settle()
        if not self.branches or self.tree is None:
            return
        if not indices:
            raise ValueError("indices: got none, expected at least one; call reset() to end all rows")
        count = len(self.branches)
        if any(not -count <= index < count for index in indices):
            raise IndexError(f"indices: got {list(indices)}, expected rows of a cache that has {count}")
        uses = Counter(index % count for index in indices)
        copies = {
            row: [self.branches[row], *self.tree.fork(self.branches[row], uses[row] - 1)] for row in uses
        }
        for row in set(range(count)) - uses.keys():
            self.tree.release(self.branches[row])
        self.branches = [copies[index % count].pop() for index in indices]
        if self.starts is not None:
            self.starts = self.starts[list(indices)]

    def _begin(self, query: Tensor, keys: Tensor, values: Tensor, mask: StepMask, origin: Origin) -> Step:
        refuse_tensors(keys, values, origin.positions)
        batch, _, columns, _ = keys.shape
        if self.columns:
            refuse_other_model(origin.module, self._filled_by(), self.columns)
        if self.branches:
            refuse_other_rows(batch, len(self.branches))
        refuse_head_size(type(origin.module).__name__, keys.shape[3], self._layout, keys.device)
        pool, tree = self._pages(keys)
        refuse_other_pages(0, keys, pool)
        created = not self.branches
        before = [0] * batch if created else self.lengths()
        tokens = mask.tokens(batch, self.columns, columns)
        counts = new_tokens(tokens, before, self.columns, columns)
        starts = origin.starts(self.starts, before, counts, columns)
        ids = [row[columns - count :] for row, count in zip(origin.ids(batch, columns), counts, strict=True)]
        if created:
            self.branches = [tree.create() for _ in range(batch)]
        try:
            share = self._share and not any(before)
            self.branches, writes = append(tree, pool, self.branches, (keys, values), ids, share=share)
            step_plan = self._plan(tree, pool, query, counts)
        except OutOfPagesError as cause:
            self._take_back(before, created)
            raise OutOfPagesError(
                f"kv_bytes: got {pool.num_pages * pool.page_bytes}, which hold {pool.num_pages} pages of "
                f"{pool.page_size} tokens, too few for {int(counts.sum())} more tokens; make the TreeCache "
                "with more, or generate fewer rows"
            ) from cause
        except BaseException:
            self._take_back(before, created)
            raise
        kept = None
        if (counts < columns).any():
            places = np.arange(columns) >= columns - counts[:, None]
            kept = torch.from_numpy(np.flatnonzero(places)).to(keys.device)
        return Step(columns, kept, writes, step_plan, before, created, get_ident(), origin, starts)

    def _plan(self, tree: KVTree, pool: KVPool, query: Tensor, counts: Int32Array) -> TreePlan | DevicePlan:
        """Returns one plan for all layers."""
        tables, lengths = tree.block_tables(self.branches)
        if pool.layout == "packed":
            return plan(tables, lengths, counts, page_size=pool.page_size)
        if self._planner is None:
            self._planner = DevicePlanner(
                num_q_heads=query.shape[1],
                num_kv_heads=pool.num_kv_heads,
                head_dim=pool.head_dim,
                page_size=pool.page_size,
                num_pages=pool.num_pages,
                dtype=pool.dtype,
                device=query.device,
            )
        return self._planner.update(tables, lengths, counts)

    def _pages(self, keys: Tensor) -> tuple[KVPool, KVTree]:
        """Returns the pool and its tree, made for keys like these at the first call."""
        if self.pool is None or self.tree is None:
            shape = self.num_layers, keys.shape[1], keys.shape[3], keys.dtype
            budget = default_bytes(keys.device) if self._kv_bytes is None else self._kv_bytes
            refuse_less_than_a_page(budget, *shape)
            with torch.inference_mode(False):  # pages of inference mode could not be written outside it
                self.pool = self._new_pool(keys, budget)
            self.tree = KVTree(self.pool.num_pages, self.pool.page_size)
        return self.pool, self.tree

    def _new_pool(self, keys: Tensor, budget: int) -> KVPool:
        """Makes a pool; raises MemoryError that names kv_bytes if the system does not grant it."""
        try:
            return KVPool(
                num_layers=self.num_layers,
                num_kv_heads=keys.shape[1],
                head_dim=keys.shape[3],
                budget_bytes=budget,
                dtype=keys.dtype,
                device=keys.device,
                layout=self._layout,
            )
        except MemoryError as cause:
            got, advice = f"none, which asks for {budget}", "pass less"
            if self._kv_bytes is not None:
                got, advice = str(budget), f"pass less, or none for {default_bytes(keys.device)}"
            raise MemoryError(
                f"kv_bytes: got {got}, more bytes than the system grants on {keys.device}; {advice}"
            ) from cause


def _tokens(rows: Tensor, kept: Tensor | None) -> Tensor:
    """Converts [B, heads, S, head_dim] to [T, heads, head_dim], row by row."""
    tokens = rows.squeeze(2) if rows.shape[2] == 1 else rows.transpose(1, 2).flatten(0, 1)
    return tokens if kept is None else tokens[kept]
