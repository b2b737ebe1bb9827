"""Runs one step of the batch on the CPU: copies of pages, the plan, the forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tts_kernels import KVPool, TreePlan, plan

from .hf import HFEngine, Inputs, Output
from .layer_states import LayerStates
from .sparse import SparseReads, SparseStep
from .tree_attention import PageChoice, PageMasses, StepContext

Int32Array = npt.NDArray[np.int32]


class StepInputs(NamedTuple):
    """T new tokens of B branches, branch by branch, for the forward of a step.

    tokens, positions: [T]. rows: which of the T tokens need logits. slots: int32 [T], where their K and V go.
    copies: int32 [C, 2], pages to copy first. tables, lengths, counts: int32 [B, P], [B] and [B], the
    branches' block tables, their total tokens, and their new ones. reads: what the tokens read, None: all.
    embeds: float [S, hidden], inputs of the S tokens of id -1, in order; None if there are none. kept_rows,
    kept_layers: the tokens and layers whose hidden states are requested; () for none.
    """

    tokens: list[int]
    positions: list[int]
    rows: list[int]
    slots: Int32Array
    copies: Int32Array
    tables: Int32Array
    lengths: Int32Array
    counts: Int32Array
    reads: SparseReads | None = None
    embeds: Tensor | None = None
    kept_rows: tuple[int, ...] = ()
    kept_layers: tuple[int, ...] = ()

    def layer_states(self, device: torch.device) -> LayerStates | None:
        """Returns a collector of the requested hidden states; None if none are requested."""
        if not self.kept_rows:
            return None
        return LayerStates(self.kept_layers, torch.tensor(self.kept_rows, device=device))


class HostSteps:
    """Runs steps on the CPU. track_mass: whether outputs have `masses`."""

    def __init__(self, engine: HFEngine, pool: KVPool, *, track_mass: bool = False) -> None:
        self._engine = engine
        self._pool = pool
        self._track_mass = track_mass

    def run(
        self, step: StepInputs, *, hidden: bool, watch: Callable[[TreePlan], PageChoice] | None = None
    ) -> Output:
        """Computes the step; K and V of its tokens go to the pool.

        watch: replaces the step's `reads`.
        """
        if len(step.copies):
            self._pool.copy(torch.from_numpy(step.copies))
        tree_plan = plan(step.tables, step.lengths, step.counts, page_size=self._pool.page_size)
        masses = PageMasses() if self._track_mass else None
        sparse = None if step.reads is None else SparseStep(tree_plan, step.reads)
        choice = sparse if watch is None else watch(tree_plan)
        context = StepContext(self._pool, torch.from_numpy(step.slots), tree_plan, masses, choice)
        tokens, positions, rows = map(torch.tensor, (step.tokens, step.positions, step.rows))
        kept = step.layer_states(tokens.device)
        inputs = Inputs(tokens, positions, rows.long(), hidden, step.embeds, kept)
        output = self._engine.forward(inputs, context)
        counts = None if sparse is None else sparse.counts()
        layers = None if kept is None else kept.stacked()
        return output._replace(pages=tree_plan.unique_pages, sparse=counts, layers=layers)


def distinct_pages(tables: Int32Array, lengths: Int32Array, num_pages: int, page_size: int) -> int:
    """Counts distinct pages of block tables [B, P] of branches with `lengths` [B] tokens, without holes.

    Takes 0.06 ms for 64 branches of 2,112 tokens, 0.2 ms for 256.
    """
    held = np.arange(tables.shape[1]) < -(-lengths[:, None] // page_size)
    seen = np.zeros(num_pages + 1, dtype=bool)
    seen[tables[held] + 1] = True  # a hole is -1
    return int(np.count_nonzero(seen[1:]))
