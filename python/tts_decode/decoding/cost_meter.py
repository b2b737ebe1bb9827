"""Live accounting: what each forward cost, and the share of it that each branch's budget pays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..cost.forward import ModelShape, SparseCounts, StepCost, StepCounts, attended_pairs, step_cost
from ..model.host_steps import StepInputs
from .branch import Branch


class CostMeter:
    """Adds up the cost of forwards; `total` is their sum.

    A forward is charged to the budgets of its branches, whatever it was for: prompts, forced tokens and a
    scorer's questions cost as sampled tokens do. A branch pays for its share of the forward's tokens in the
    weights and the logits, and for its share of the (query, page) pairs in attention and selection; so a page
    that several read, and the weights, are paid for together.
    """

    def __init__(self, shape: ModelShape, page_size: int) -> None:
        self.shape = shape
        self.total = StepCost()
        self._page_size = page_size

    def add(
        self, branches: Sequence[Branch], step: StepInputs, pages: int, sparse: SparseCounts | None = None
    ) -> None:
        """Accounts one forward of `branches`, in the order of the step.

        pages: distinct pages of the step. sparse: what its sparse layers read, None if all are dense.
        """
        counts = step.counts.astype(np.int64)
        pairs, columns = attended_pairs(step.lengths.astype(np.int64), counts, self._page_size)
        tokens, all_columns = len(step.tokens), int(columns.sum())
        totals = StepCounts(tokens, len(step.rows), int(pairs.sum()), all_columns, pages, self._page_size)
        cost = step_cost(self.shape, totals, sparse)
        self.total += cost
        if all(branch.budget is None for branch in branches):
            return
        by_token = np.add(cost.weights, cost.logits) / tokens  # (flops, bytes)
        by_page = np.add(cost.attention, cost.selection) / all_columns
        shares = np.outer(counts, by_token) + np.outer(columns, by_page)
        for branch, (flops, read_bytes) in zip(branches, shares.tolist(), strict=True):
            if branch.budget is not None:
                branch.budget.charge(flops, read_bytes)
