"""The cost of each forward, and the share that each budget pays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..core.budget import Budget
from ..cost.forward import ModelShape, SparseCounts, StepCost, StepCounts, attended_pairs, step_cost
from ..model.host_steps import Int32Array, StepInputs

_MOST_PENDING = 256  # forwards whose cost is not computed yet


class _Forward(NamedTuple):
    """One forward to account.

    lengths, counts: int32 [B], total and new tokens of each branch. tokens, logits: new tokens in all, and
    those with logits. pages: distinct ones.
    """

    lengths: Int32Array
    counts: Int32Array
    tokens: int
    logits: int
    pages: int
    sparse: SparseCounts | None


class CostMeter:
    """Adds up the cost of forwards.

    A forward is charged to the budgets of its branches, whatever its purpose: prompts, forced tokens and a
    scorer's questions cost the same as sampled tokens. For weights and logits, a branch pays by its share of
    the forward's tokens; for attention and selection, by its share of the (query, page) pairs. So branches
    share the cost of the weights and of the pages that several of them read.
    """

    def __init__(self, shape: ModelShape, page_size: int) -> None:
        self._shape = shape
        self._page_size = page_size
        self._total = StepCost()
        self._pending: list[_Forward] = []

    @property
    def total(self) -> StepCost:
        """Returns the cost of all forwards so far."""
        for forward in self._pending:
            self._total += self._cost(forward)[0]
        self._pending.clear()
        return self._total

    def add(
        self,
        budgets: Sequence[Budget | None],
        step: StepInputs,
        pages: int,
        sparse: SparseCounts | None = None,
    ) -> None:
        """Accounts one forward.

        budgets: of its branches, in the order of the step. pages: distinct pages of the step.
        sparse: what its sparse layers read, None if all are dense.
        """
        forward = _Forward(step.lengths, step.counts, len(step.tokens), len(step.rows), pages, sparse)
        if budgets.count(None) < len(budgets):
            cost, columns = self._cost(forward)
            self._total += cost
            self._charge(budgets, forward, cost, columns)
        elif len(self._pending) == _MOST_PENDING:
            self._total = self.total + self._cost(forward)[0]
        else:
            self._pending.append(forward)

    def _cost(self, forward: _Forward) -> tuple[StepCost, npt.NDArray[np.int64]]:
        """Returns a forward's cost, and int64 [B], the (query, page) pairs of each branch."""
        lengths, counts = forward.lengths.astype(np.int64), forward.counts.astype(np.int64)
        pairs, columns = attended_pairs(lengths, counts, self._page_size)
        sums = int(pairs.sum()), int(columns.sum())
        totals = StepCounts(forward.tokens, forward.logits, *sums, forward.pages, self._page_size)
        return step_cost(self._shape, totals, forward.sparse), columns

    def _charge(
        self,
        budgets: Sequence[Budget | None],
        forward: _Forward,
        cost: StepCost,
        columns: npt.NDArray[np.int64],
    ) -> None:
        by_token = np.add(cost.weights, cost.logits) / forward.tokens  # (flops, bytes)
        by_page = np.add(cost.attention, cost.selection) / columns.sum()
        shares = np.outer(forward.counts, by_token) + np.outer(columns, by_page)
        for budget, (flops, read_bytes) in zip(budgets, shares.tolist(), strict=True):
            if budget is not None:
                budget.charge(flops, read_bytes)
