"""Models of known accuracy per token, at the cost that the law gives for their shapes.

Each token solves problem i with probability h_i, so t tokens, in one chain or in parallel samples, solve it
with probability

    p_i(t) = 1 - (1 - h_i)^t.

The hazards h_i are log-normal, with a median at which half of the problems are solved within `MEDIAN_TOKENS`;
their spread determines how steeply accuracy rises. A sparse model has the same hazards times `kept`, which is
1 if sparse attention loses nothing. Accuracy thus depends only on tokens, and at equal cost dense and sparse
differ only by the cost law: by the factor of tokens that the sparse model gains.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import norm
from tts_decode.cost import KINETICS_INTENSITY, ModelShape, SparseBudget, search_cost
from tts_decode.plots import MEASURES, Ended, Line, SavedRun, lines_of

Floats = npt.NDArray[np.float64]

MEDIAN_TOKENS = 8192
PAGES = 64  # of 16 tokens: the 1,024 tokens that the paper's sparse models read
BATCH = 64  # searches in flight, which share a step's reading of the weights
PROMPT = 512
SAMPLE = 4096  # tokens of one sample
# Qwen3's: layers, query heads, KV heads, head_dim, hidden, intermediate.
SHAPES = {
    "0.6B": (28, 16, 8, 128, 1024, 3072),
    "1.7B": (28, 16, 8, 128, 2048, 6144),
    "4B": (36, 32, 8, 128, 2560, 9728),
    "8B": (36, 32, 8, 128, 4096, 12288),
    "14B": (40, 40, 8, 128, 5120, 17408),
    "32B": (64, 64, 8, 128, 5120, 25600),
}


class Size(NamedTuple):
    """n samples of so many tokens each."""

    n: int
    tokens: int

    @property
    def total(self) -> int:
        return self.n * self.tokens


# Sparse searches go on to sizes that cost as much as the largest dense ones.
CHAINS = tuple(Size(1, 2**k) for k in range(10, 19))
SAMPLES = tuple(Size(2**k, SAMPLE) for k in range(7))
DENSE_CHAINS, DENSE_SAMPLES = CHAINS[:6], SAMPLES[:5]


def shape(name: str) -> ModelShape:
    layers, q_heads, kv_heads, head_dim, hidden, intermediate = SHAPES[name]
    return ModelShape.gated(
        num_layers=layers,
        num_q_heads=q_heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        hidden=hidden,
        intermediate=intermediate,
        vocab=151936,
    )


@cache
def eflops(name: str, size: Size, sparse: bool) -> float:
    """Of one search among `BATCH` like it: each pays its share of the reading of the weights."""
    budget = SparseBudget(PAGES, share="branch", keep_tail=False) if sparse else None
    cost = search_cost(
        shape(name), prompt=PROMPT, branches=size.n, generated=size.tokens, budget=budget
    ).total
    others = (cost.weights.bytes + cost.logits.bytes) * (1 - 1 / BATCH)
    return cost.combined() - KINETICS_INTENSITY * others


def log_hazards(spread: float, quantiles: Floats) -> Floats:
    """ln h at quantiles of its distribution."""
    found: Floats = math.log(math.log(2) / MEDIAN_TOKENS) + spread * norm.ppf(quantiles)
    return found


def solved_by(hazards: Floats, tokens: float, kept: float = 1.0) -> Floats:
    """p_i(tokens) of each."""
    found: Floats = -np.expm1(tokens * np.log1p(-np.minimum(hazards * kept, 1 - 1e-12)))
    return found


def accuracy(tokens: float, spread: float, kept: float = 1.0) -> float:
    """Of the model over all its problems: the mean over 4,001 quantiles of their hazards."""
    hazards = np.exp(log_hazards(spread, (np.arange(4001) + 0.5) / 4001))
    return float(solved_by(hazards, tokens, kept).mean())


def tokens_at_cost(name: str, sizes: Sequence[Size], cost: float, *, sparse: bool) -> float:
    """Tokens of a search of that cost: between two sizes, linear in the logarithms of both. Raises
    ValueError: no size costs as little, or as much."""
    costs = [eflops(name, size, sparse) for size in sizes]
    if not costs[0] <= cost <= costs[-1]:
        raise ValueError(f"cost: got {cost:.3g}, expected {costs[0]:.3g} to {costs[-1]:.3g} eFLOPs")
    return float(np.exp(np.interp(math.log(cost), np.log(costs), np.log([size.total for size in sizes]))))


def lines(
    name: str, sizes: Sequence[Size], spread: float, problems: int, *, kept: float = 1.0, seed: int = 0
) -> tuple[Line, Line]:
    """Searches of so many drawn problems, each solved or not by chance, as a bench would measure them: dense
    and sparse."""
    rng = np.random.default_rng(seed)
    hazards = np.exp(log_hazards(spread, rng.random(problems)))
    runs = []
    for sparse in (False, True):
        for size in sizes:
            solved = rng.random(problems) < solved_by(hazards, size.total, kept if sparse else 1.0)
            cost = eflops(name, size, sparse)
            settings = {
                "model": f"scripted {name}",
                "strategy": "chain",
                "options": {"n": size.total},
                "problems": problems,
                "sparse": {"budget": PAGES} if sparse else None,
            }
            ended = [Ended(i, bool(right), size.total, cost, 0.0, 0.0, 0.0) for i, right in enumerate(solved)]
            runs.append(SavedRun(Path(f"{size.total}-{sparse}.jsonl"), settings, tuple(ended)))
    dense, found = sorted(lines_of(runs, MEASURES["eflops"]), key=lambda line: line.sparse or "")
    return dense, found
