"""A model with its own pages, and probes of its forwards that judge choices of pages."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tts_decode.core.lineage import Lineage
from tts_decode.model.hf import HFEngine, Inputs
from tts_decode.model.sparse import SparseConfig, SparseReads
from tts_decode.model.tree_attention import StepContext

from tts_kernels import KVPool, KVTree, Selection, TreePlan, plan, score_pages, select_top_pages

Share = Literal["branch", "siblings", "tree"]
PAGE = 16
CHUNK = 512  # tokens of a forward of a prefix
SHARES: tuple[Share, ...] = ("branch", "siblings", "tree")

Watch = Callable[["Step"], Any]  # what takes the place of a SparseStep: has select(layer, pool, q, scale)


class Step(NamedTuple):
    """What a forward computes. tables, lengths (all tokens), counts (new ones), lineages: by branch."""

    plan: TreePlan
    tables: np.ndarray
    lengths: np.ndarray
    counts: np.ndarray
    lineages: Sequence[Lineage]

    def reads(self, config: SparseConfig) -> SparseReads:
        """What its tokens read, each as one that was sampled."""
        forced = np.zeros(len(self.counts), bool)
        reads = config.reads(self.lengths - self.counts, self.counts, forced, self.lineages, PAGE)
        if reads is not None:
            return reads
        everything = torch.full((self.plan.num_queries,), 2**31 - 1, dtype=torch.int32)
        return SparseReads(config, everything, None, None, everything < 0)


class PagedModel:
    """A model with a pool and a tree, fed directly."""

    def __init__(
        self,
        engine: HFEngine,
        num_pages: int,
        *,
        dtype: torch.dtype | None = None,
        summaries: str | None = None,
    ) -> None:
        shape = engine.kv_shape
        self.engine = engine
        self.tree = KVTree(num_pages)
        self.pool = KVPool(
            num_layers=shape.num_layers,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            num_pages=num_pages,
            dtype=dtype or engine.dtype,
            summaries=summaries,
        )

    def feed(
        self,
        branches: list[int],
        tokens: Sequence[list[int]],
        watch: Watch | None = None,
        *,
        every: bool = False,
        lineages: Sequence[Lineage] | None = None,
    ) -> Tensor:
        """Logits after the last of each branch's tokens [B, vocab], or after every token [T, vocab].

        lineages: of the branches; default: none was ever forked.
        """
        new = self.tree.append(branches, tokens)
        self.pool.copy(torch.from_numpy(new.copies))
        block_tables, lengths = self.tree.block_tables(branches)
        counts = np.array([len(part) for part in tokens], dtype=np.int32)
        lineages = lineages or [Lineage.of_root() for _ in branches]
        step = Step(plan(block_tables, lengths, counts), block_tables, lengths, counts, lineages)
        sparse = watch and watch(step)
        context = StepContext(self.pool, torch.from_numpy(new.slots), step.plan, sparse=sparse)
        positions = [np.arange(end - n, end) for end, n in zip(lengths, counts, strict=True)]
        ids = torch.tensor([token for part in tokens for token in part])
        rows = None if every else torch.from_numpy(counts.cumsum() - 1)
        inputs = Inputs(ids, torch.from_numpy(np.concatenate(positions)).long(), rows)
        return self.engine.forward(inputs, context).logits

    def prefill(self, tokens: list[int]) -> int:
        root = self.tree.create()
        for start in range(0, len(tokens), CHUNK):
            self.feed([root], [tokens[start : start + CHUNK]])
        return root

    def adopt(self, other: PagedModel, branch: int) -> int:
        """A branch of another pool of the same pages, with the same keys and values."""
        root = self.tree.create()
        tokens = other.tree.tokens(branch)
        slots = torch.from_numpy(self.tree.append([root], [tokens]).slots)
        table = torch.from_numpy(other.tree.block_tables([branch])[0][0])
        for layer in range(self.pool.num_layers):
            self.pool.append(layer, *other.pool.gather(layer, table, len(tokens)), slots)
        return root


class Captured:
    """Means of the attention mass that choices hold, by name: over layers, KV heads and rows."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, ...], list[float]] = defaultdict(list)

    def add(self, name: tuple[str, ...], mass: Tensor, selection: Selection) -> None:
        """mass: [num_kv_heads, T, P]."""
        chosen = selection.to_bools(mass.shape[-1])
        self.values[name].append((mass * chosen).sum(-1).mean().item())

    def means(self) -> dict[tuple[str, ...], float]:
        return {name: float(np.mean(values)) for name, values in self.values.items()}


class Chooser:
    """The rule of a `SparseConfig` in one forward, its budgets and the pages always kept, by any scores."""

    def __init__(self, step: Step, config: SparseConfig) -> None:
        self.config = config
        self._plan = step.plan
        self._reads = {share: step.reads(replace(config, share=share)) for share in SHARES}

    def choose(self, scores: Tensor, share: Share = "branch") -> Selection:
        """scores: [num_kv_heads, T, P]."""
        c, reads = self.config, self._reads[share]
        return select_top_pages(
            scores,
            self._plan,
            reads.budgets,
            sink=c.sink,
            recent=c.recent,
            tail_begin=reads.tail_begin,
            groups=reads.groups,
        )


def exact_masses(step: Step, layer: int, pool: KVPool, q: Tensor, scale: float | None) -> Tensor:
    return pool.attend_with_mass(layer, q, step.plan, scale=scale)[2]


def latest_first(step: Step, num_kv_heads: int) -> Tensor:
    """Scores by which the sink and the latest pages are chosen."""
    columns = torch.arange(1.0, step.plan.max_columns + 1)
    return columns.expand(num_kv_heads, step.plan.num_queries, -1).contiguous()


class RecallProbe:
    """Reads everything, and compares each layer's choices with the exact masses.

    Names in `captured`: (judge, budget, "first" layers, which SparseConfig keeps dense, or "sparse" ones).
    """

    def __init__(self, step: Step, configs: dict[str, SparseConfig], captured: Captured) -> None:
        self._step, self._captured = step, captured
        self._choosers = {name: Chooser(step, config) for name, config in configs.items()}

    def select(self, layer: int, pool: KVPool, q: Tensor, scale: float | None) -> None:
        mass = exact_masses(self._step, layer, pool, q, scale)
        window = latest_first(self._step, pool.num_kv_heads)
        scores = score_pages(q, pool.layer_summaries(layer), self._step.plan, scale=scale)
        for name, chooser in self._choosers.items():
            layers = "first" if layer < chooser.config.dense_layers else "sparse"
            for judge, by in ((chooser.config.summaries, scores), ("oracle", mass), ("window", window)):
                self._captured.add((judge, name, layers), mass, chooser.choose(by))


class Baseline:
    """In place of a SparseStep, chooses by the exact masses or by position."""

    def __init__(self, step: Step, config: SparseConfig, judge: str) -> None:
        self._step, self._chooser, self._judge = step, Chooser(step, config), judge

    def select(self, layer: int, pool: KVPool, q: Tensor, scale: float | None) -> Selection | None:
        if layer < self._chooser.config.dense_layers:
            return None
        if self._judge == "oracle":
            return self._chooser.choose(exact_masses(self._step, layer, pool, q, scale))
        return self._chooser.choose(latest_first(self._step, pool.num_kv_heads))


class ShareProbe:
    """Reads everything, and sets what branches lose by choosing together beside what they save.

    `pages`: of the first `shared` columns, those that one branch reads and those that all of them read, by
    (budget, share, "one" or "all").
    """

    def __init__(
        self, step: Step, configs: dict[str, SparseConfig], shared: int, captured: Captured, pages: Captured
    ) -> None:
        self._step, self._shared = step, shared
        self._captured, self._pages = captured, pages
        self._choosers = {name: Chooser(step, config) for name, config in configs.items()}

    def select(self, layer: int, pool: KVPool, q: Tensor, scale: float | None) -> None:
        mass = exact_masses(self._step, layer, pool, q, scale)
        scores = score_pages(q, pool.layer_summaries(layer), self._step.plan, scale=scale)
        for name, chooser in self._choosers.items():
            if layer < chooser.config.dense_layers:
                continue
            for share in SHARES:
                chosen = chooser.choose(scores, share)
                self._captured.add((name, share), mass, chosen)
                read = chosen.to_bools(self._shared)
                self._pages.values[name, share, "one"].append(read.sum(-1).float().mean().item())
                self._pages.values[name, share, "all"].append(read.any(1).sum(-1).float().mean().item())


class Int8Probe:
    """Reads everything, and compares each layer's output over int8 pages. Sums of squares over layers."""

    def __init__(self, step: Step) -> None:
        self._step = step
        self.error = self.total = 0.0

    def select(self, layer: int, pool: KVPool, q: Tensor, scale: float | None) -> None:
        length = int(self._step.lengths[0])
        table = torch.from_numpy(self._step.tables[0])
        position = torch.arange(length)
        slots = (table[position // PAGE] * PAGE + position % PAGE).int()
        rounded = KVPool(
            num_layers=1,
            num_kv_heads=pool.num_kv_heads,
            head_dim=pool.head_dim,
            num_pages=pool.num_pages,
            dtype=torch.int8,
        )
        rounded.append(0, *pool.gather(layer, table, length), slots)
        exact, out = (
            p.attend(i, q, self._step.plan, scale=scale)[0] for p, i in ((pool, layer), (rounded, 0))
        )
        self.error += (out.double() - exact.double()).square().sum().item()
        self.total += exact.double().square().sum().item()

    @property
    def relative_rms(self) -> float:
        return float((self.error / self.total) ** 0.5)
