"""Measures parts of a decode step on this CPU: attention over the replayed trees, and a layer's products.

Attention runs for one layer, over random keys and values on the pages that the replay allocated. REBASE and
ETS take turns, on trees of one problem at one step. The products are those of a layer of Llama-7B.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tts_decode.bench.timing import interleaved
from tts_decode.bench.trees import Heads
from tts_decode.cost import Machine, ModelShape, StepCounts, step_cost

from benches.ets_claims.paging import PAGE, Moment, Snapshot
from tts_kernels import KVPool, PackedWeight, packed_linear, plan

HEADS = (Heads(32, 32), Heads(64, 8))
HIDDEN, INTERMEDIATE, LAYERS, VOCAB = 4096, 11008, 32, 32000  # Llama-7B
SHAPES = {
    "32/32/128": ModelShape.gated(
        num_layers=LAYERS,
        num_q_heads=32,
        num_kv_heads=32,
        head_dim=128,
        hidden=HIDDEN,
        intermediate=INTERMEDIATE,
        vocab=VOCAB,
    ),
    "64/8/128": ModelShape.gated(  # Llama-70B
        num_layers=80,
        num_q_heads=64,
        num_kv_heads=8,
        head_dim=128,
        hidden=8192,
        intermediate=28672,
        vocab=VOCAB,
    ),
}
H100 = Machine(flops=989e12, bandwidth=3.35e12)  # dense bfloat16; HBM3 of the SXM board


class Attention:
    """Calls of one layer's attention over trees: a pool for all of them, of random contents."""

    def __init__(self, heads: Heads, pages: int) -> None:
        self._heads = heads
        self._pool = KVPool(
            num_layers=1, num_kv_heads=heads.kv, head_dim=heads.d, num_pages=pages, dtype=torch.bfloat16
        )
        generator = torch.Generator().manual_seed(0)
        block = torch.randn((1 << 20,), generator=generator).to(torch.bfloat16)
        for stored in self._pool.layer(0):
            flat = stored.view(-1)
            for begin in range(0, len(flat), len(block)):
                part = flat[begin : begin + len(block)]
                part.copy_(block[: len(part)])

    def call(self, tree: Snapshot) -> Callable[[], object]:
        """Of a query for each branch at the end of its path."""
        planned = plan(tree.tables, tree.lengths)
        q = torch.randn((len(tree.lengths), self._heads.q, self._heads.d)).to(torch.bfloat16)
        return lambda: self._pool.attend(0, q, planned)


def time_attention(
    heads: Heads, trees: Mapping[str, Sequence[Snapshot]], rounds: int
) -> dict[str, list[Any]]:
    """Of each tree its distinct pages, its (query, token) pairs and the quartiles of its seconds. Trees at
    one place of the lists are timed in turn."""
    pages = 1 + max(int(tree.tables.max()) for side in trees.values() for tree in side)
    attention = Attention(heads, pages)
    found: dict[str, list[Any]] = {name: [] for name in trees}
    for together in zip(*trees.values(), strict=True):
        by_name = dict(zip(trees, together, strict=True))
        calls = {name: attention.call(tree) for name, tree in by_name.items()}
        for name, quartiles in interleaved(calls, rounds).items():
            tree = by_name[name]
            distinct = len(np.unique(tree.tables[tree.tables >= 0]))
            found[name].append([distinct, int(tree.lengths.sum()), *quartiles])
    return found


def time_products(rows: Sequence[int], rounds: int) -> dict[str, list[float]]:
    """Quartiles of the seconds of a layer's products, by the rows that they have. Weights lie in memory."""
    shape = SHAPES["32/32/128"]
    qkv = (shape.num_q_heads + 2 * shape.num_kv_heads) * shape.head_dim
    weights = [
        _weight(qkv, HIDDEN),
        _weight(HIDDEN, shape.num_q_heads * shape.head_dim),
        PackedWeight.pack_gated(_random(INTERMEDIATE, HIDDEN), _random(INTERMEDIATE, HIDDEN)),
        _weight(HIDDEN, INTERMEDIATE),
    ]

    def layer(count: int) -> Callable[[], object]:
        inputs = [torch.randn((count, weight.inputs)).to(torch.bfloat16) for weight in weights]
        return lambda: [packed_linear(x, weight) for x, weight in zip(inputs, weights, strict=True)]

    times = interleaved({str(count): layer(count) for count in rows}, rounds)
    return {count: [*quartiles] for count, quartiles in times.items()}


def _random(outputs: int, inputs: int) -> Tensor:
    return (torch.randn((outputs, 1)) * torch.randn((1, inputs))).to(torch.bfloat16)


def _weight(outputs: int, inputs: int) -> PackedWeight:
    return PackedWeight.pack(_random(outputs, inputs))


class Timed(NamedTuple):
    """Seconds of a step of one token for each branch, by the cost law on a machine: all, and attention
    alone."""

    whole: float
    attention: float


def by_the_law(shape: ModelShape, machine: Machine, moment: Moment, searches: int = 1) -> Timed:
    """searches: so many like this one side by side, which read the weights together."""
    counts = StepCounts(
        tokens=moment.rows * searches,
        logits=moment.rows * searches,
        pairs=moment.pairs * searches,
        columns=moment.pairs * searches // PAGE,
        pages=moment.pages * searches,
        page_size=PAGE,
    )
    cost = step_cost(shape, counts)
    attention = cost.attention.flops / machine.flops + cost.attention.bytes / machine.bandwidth
    return Timed(machine.seconds(cost), attention)


def law_of(moments: Sequence[Moment], shape: ModelShape, searches: int = 1) -> dict[str, Any]:
    """Seconds of a whole search on an H100."""
    timed = [(moment.ticks, by_the_law(shape, H100, moment, searches)) for moment in moments]
    return {
        "whole": sum(ticks * step.whole for ticks, step in timed),
        "attention": sum(ticks * step.attention for ticks, step in timed),
    }
