"""Sparse attention in the decoder: the settings, and their use in one forward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tts_kernels import DevicePlan, KVPool, Selection, TreePlan, count_selected, select_pages
from tts_kernels.checks import instance, integer, is_integer, number

from ..core.checks import check_choice, checked_count
from ..core.lineage import Lineage
from ..cost.forward import SparseCounts
from .transfer import to_device

IntArray = npt.NDArray[np.integer[Any]]
_ALL_PAGES = _NO_PAGE = 2**31 - 1


@dataclass(frozen=True)
class SparseConfig:
    """Which pages decode steps read, for `TreeDecoder(sparse=...)`.

    A page has 16 tokens. Layers with a sliding window or chunks stay dense, and so do prompts, forced text of
    more than one token and what `Branch.read` reads, unless `prompts` is set. Models with ALiBi are refused.

    What a branch reads depends on its tokens and on where it was forked, never on which other branches live,
    wait or run; with `share` also on the branches that choose with it.

    Attributes:
        budget: pages that a branch reads in a layer for each KV head: an int, or the share of its pages as a
            float in (0, 1).
        top_p: read fewer pages if they hold this share of the estimated attention (Twilight); None: always
            the budget.
        summaries: how a page is judged before it is read: "mean", by its mean key (Kinetics); or, at twice
            the bytes, "minmax", by a bound from the smallest and largest values of each channel (Quest), or,
            on a CPU, "quarters", by means of 4 tokens each over the channels that rotary embeddings rotate
            least.
        sink, recent: first and last pages that are always read.
        share: "branch": every branch chooses its own pages; "siblings": one choice for the branches with the
            same last fork; "tree": one for all branches of a root. A shared choice uses the scores of those
            branches that are in the same forward: a branch that waits or ended has no query to judge pages
            by. A tree's branches go into a forward together, whatever else is in the batch.
        keep_tail: always read what the branch added since its last fork, the deepest on its path: the page
            that contains the fork and all later pages. A branch whose path was never forked has no tail. Set
            False if the tails are most of the context.
        dense_layers: number of first layers that stay dense. Quest keeps 2, Kinetics 1.
        min_pages: lower limit of a budget given as a share.
        prompts: read sparsely in prompts and forced text too, each token its own pages, without a tail.
    """

    budget: int | float = 0.125
    top_p: float | None = None
    summaries: Literal["mean", "minmax", "quarters"] = "mean"
    sink: int = 1
    recent: int = 4
    share: Literal["branch", "siblings", "tree"] = "branch"
    keep_tail: bool = True
    dense_layers: int = 2
    min_pages: int = 16
    prompts: bool = False

    def __post_init__(self) -> None:
        if is_integer(self.budget):
            self._keep("budget", integer("budget", self.budget, 1))
        else:
            what = "an int, pages, or a float, a share of them"
            self._keep("budget", number("budget", self.budget, above=0, below=1, what=what))
        if self.top_p is not None:
            self._keep("top_p", number("top_p", self.top_p, above=0, high=1))
        check_choice("summaries", self.summaries, ("mean", "minmax", "quarters"))
        check_choice("share", self.share, ("branch", "siblings", "tree"))
        for name, least in (("sink", 0), ("recent", 1), ("dense_layers", 0), ("min_pages", 1)):
            self._keep(name, checked_count(name, getattr(self, name), least))

    def _keep(self, name: str, value: Any) -> None:
        """Replaces the given value by the checked one."""
        object.__setattr__(self, name, value)

    def reads(
        self,
        begins: IntArray,
        counts: IntArray,
        forced: npt.NDArray[np.bool_],
        lineages: Sequence[Lineage],
        page_size: int,
    ) -> SparseReads | None:
        """Returns what the new tokens of B branches read in one forward; None: everything.

        Args:
            begins, counts, forced: [B], position of each branch's first new token, their number, and whether
                they are forced text or a prompt.
        """
        columns = (np.repeat(begins, counts) + _ranges(counts)) // page_size + 1
        rows_forced = np.repeat(forced, counts)
        if isinstance(self.budget, int):
            budget = np.full(columns.shape, float(self.budget))
        else:
            budget = np.maximum(np.ceil(self.budget * columns), self.min_pages)
        budget = np.minimum(budget, _ALL_PAGES)
        if not self.prompts:
            budget[rows_forced] = _ALL_PAGES
        if (budget >= columns).all():
            return None
        forks = [line.last_fork(begin) for line, begin in zip(lineages, begins.tolist(), strict=True)]
        tails = groups = None
        if self.keep_tail:
            first = [_NO_PAGE if fork is None else fork.at // page_size for fork in forks]
            tails = _int32(np.where(rows_forced, _NO_PAGE, np.repeat(first, counts)))
        if self.share != "branch":
            together = [
                line.tree if self.share == "tree" or fork is None else fork.number
                for line, fork in zip(lineages, forks, strict=True)
            ]
            alone = -1 - np.arange(len(columns))
            keys = np.where(rows_forced, alone, np.repeat(together, counts))
            groups = _int32(np.unique(keys, return_inverse=True)[1])
        private = torch.from_numpy((budget < columns) & ~rows_forced)
        return SparseReads(self, _int32(budget), tails, groups, private)


@dataclass(frozen=True)
class SparseReads:
    """What the T queries of a forward read, in the format of `tts_kernels.select_pages`.

    Attributes:
        config: the settings.
        budgets: int32 [T].
        tail_begin, groups: int32 [T] or None.
        private: bool [T], tokens that see only what their branch chose, so that their KV differs from a
            prompt's with the same tokens.
    """

    config: SparseConfig
    budgets: Tensor
    tail_begin: Tensor | None
    groups: Tensor | None
    private: Tensor

    def to(self, device: torch.device) -> SparseReads:
        """Returns the same with the arguments of `select_pages` on a device."""
        tail_begin, groups = (
            None if rows is None else to_device(rows, device) for rows in (self.tail_begin, self.groups)
        )
        budgets = to_device(self.budgets, device)
        return replace(self, budgets=budgets, tail_begin=tail_begin, groups=groups)


def _int32(numbers: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(numbers.astype(np.int32))


def _ranges(counts: IntArray) -> npt.NDArray[np.int64]:
    """Returns 0 .. counts[0] - 1, 0 .. counts[1] - 1, ..."""
    total = int(counts.sum())
    return np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)


class SparseStep:
    """The choices of one forward, layer by layer, and their counts."""

    def __init__(self, plan: TreePlan | DevicePlan, reads: SparseReads) -> None:
        self._config = reads.config
        self._plan = plan
        self._reads = reads
        self._layers = self._pairs = self._loads = 0

    def select(self, layer: int, pool: KVPool, q: Tensor, scale: float | None) -> Selection | None:
        """Returns the pages that queries [T, num_q_heads, head_dim] read in a layer; None: all."""
        config = self._config
        if layer < config.dense_layers:
            return None
        selection = select_pages(
            q,
            pool.layer_summaries(layer),
            self._plan,
            self._reads.budgets,
            scale=scale,
            top_p=config.top_p,
            sink=config.sink,
            recent=config.recent,
            tail_begin=self._reads.tail_begin,
            groups=self._reads.groups,
        )
        self._layers += 1
        if isinstance(self._plan, TreePlan):
            counts = count_selected(selection, self._plan)
            self._pairs += counts.pairs
            self._loads += counts.loads
        return selection

    def counts(self) -> SparseCounts:
        return SparseCounts(self._layers, self._pairs, self._loads, self._vectors)

    def counts_by_budget(self, columns: int, pages: int, num_kv_heads: int) -> SparseCounts:
        """Estimates the counts for a GPU, where reading them would wait: every budget is used up.

        Args:
            columns: pages of all queries, with repeats, that they may read.
            pages: distinct ones of the step.
        """
        pairs = self._layers * num_kv_heads * columns
        loads = self._layers * num_kv_heads * min(columns, pages)
        return SparseCounts(self._layers, pairs, loads, self._vectors)

    @property
    def _vectors(self) -> int:
        return 1 if self._config.summaries == "mean" else 2


def check_sparse(sparse: SparseConfig, num_layers: int) -> None:
    """Raises TypeError or ValueError unless the settings fit a model of `num_layers` layers."""
    instance("sparse", sparse, SparseConfig)
    if sparse.dense_layers >= num_layers:
        raise ValueError(
            f"sparse.dense_layers: got {sparse.dense_layers}, expected fewer than the model's {num_layers} "
            "layers"
        )


def parse_budget(text: str) -> int | float:
    """Parses a budget: "64" is 64 pages; "0.125" and "1/8" are a share of a branch's pages."""
    top, slash, bottom = text.partition("/")
    try:
        value = int(top) / int(bottom) if slash else float(text) if "." in text else int(text)
    except (ValueError, ZeroDivisionError):
        value = math.nan
    if math.isnan(value) or value <= 0 or (isinstance(value, float) and value >= 1):
        raise ValueError(f"got {text!r}, expected a number of pages, or a share of them such as 1/8 or 0.125")
    return value
