"""Measures `select.ets_select` at 256 leaves, exact and greedy, and the loss of greedy.

Target: exact in under 20 ms. The trees grow as in REBASE: random scores, with the width divided by their
softmax at every depth, by each of its two allocations. Steps of one parent agree with a probability that
varies between trees. The distribution over all trees is printed at the end: pytest benches/bench_ets.py
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
from tts_decode.select import ALLOCATIONS, ets_objective, ets_select, rebase_weights

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

LEAVES = 256
DEPTHS = (2, 4, 7, 10)
CLUSTERS = (10, 20, 40, 70, 100, 150, 200)
TREES = 10  # of each depth and number of clusters
METHODS: tuple[Literal["exact", "greedy"], ...] = ("exact", "greedy")


@dataclass
class Instance:
    """The arguments of `ets_select`."""

    outcomes: list[float]
    parents: list[int]
    leaves: list[int]
    costs: list[float]
    clusters: list[int]
    lambdas: dict[str, float]

    def select(self, method: Literal["exact", "greedy"]) -> list[bool]:
        return ets_select(*self.positional, **self.lambdas, method=method)

    def objective(self, kept: list[bool]) -> float:
        return ets_objective(kept, *self.positional, **self.lambdas)

    @property
    def positional(self) -> tuple[Any, ...]:
        return self.outcomes, self.parents, self.leaves, self.costs, self.clusters


def instance(seed: int, leaves: int, depth: int, clusters: int, allocation: str = "published") -> Instance:
    """A tree of `depth` steps under a prompt, as wide as `leaves` at each, with at most so many clusters.

    allocation: that of `rebase`, by which the tree grew and outcomes are made.
    """
    rng = random.Random(seed)
    noise, alike, skewed = rng.uniform(0.05, 0.3), rng.random(), rng.random()
    parents = [-1]
    living = [(0, 0.5)] * leaves  # node above and its score, one for each continuation
    for _ in range(depth):
        above = living
        scores = [min(1.0, max(0.0, score + rng.gauss(0, noise))) for _, score in above]
        nodes = list(range(len(parents), len(parents) + leaves))
        parents += [node for node, _ in above]
        counts = ALLOCATIONS[allocation](leaves, rebase_weights(scores))
        living = [
            (node, s) for node, s, count in zip(nodes, scores, counts, strict=True) for _ in range(count)
        ]
    labels: dict[int, int] = {}  # parent -> the cluster of its last child
    drawn = []
    for node in nodes:
        if parents[node] not in labels or rng.random() >= alike:
            often = min(int(rng.expovariate(3 / clusters)), clusters - 1)
            labels[parents[node]] = often if rng.random() < skewed else rng.randrange(clusters)
        drawn.append(labels[parents[node]])
    costs = [float(rng.randint(3, 60)) for _ in parents] if rng.random() < 0.5 else [1.0] * len(parents)
    lambdas = {"lambda_b": rng.choice([1.0, 1.0, 1.5, 2.0]), "lambda_d": rng.choice([1.4, 1.45, 1.5])}
    return Instance([count / leaves for count in counts], parents, nodes, costs, drawn, lambdas)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("depth", DEPTHS)
def test_select(benchmark: BenchmarkFixture, depth: int, method: Literal["exact", "greedy"]) -> None:
    """One tree with 70 clusters."""
    tree = instance(0, LEAVES, depth, 70)
    benchmark.pedantic(tree.select, (method,), rounds=20, warmup_rounds=2)


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_distribution(capsys: pytest.CaptureFixture[str], allocation: str) -> None:
    """CPU time on each tree, the best of three, and the gap between the objectives."""
    seconds: dict[str, list[float]] = {method: [] for method in METHODS}
    gaps = []
    instance(0, LEAVES, 4, 40).select("exact")  # SciPy is imported at the first call
    for depth in DEPTHS:
        for clusters in CLUSTERS:
            for seed in range(TREES):
                number = 1000 * seed + 10 * depth + clusters
                tree = instance(number, LEAVES, depth, clusters, allocation)
                values = []
                for method in METHODS:
                    times = []
                    for _ in range(3):
                        began = time.process_time()
                        kept = tree.select(method)
                        times.append(time.process_time() - began)
                    seconds[method].append(min(times))
                    values.append(tree.objective(kept))
                gaps.append(values[0] - values[1])
    with capsys.disabled():
        print(f"\n\n{len(gaps)} trees of {LEAVES} leaves, {allocation} allocation, ms of CPU time")
        print(f"{'':8}{'median':>8}{'90%':>8}{'99%':>8}{'worst':>8}{'over 20 ms':>12}")
        for method, times in seconds.items():
            cuts = np.quantile(times, [0.5, 0.9, 0.99, 1]) * 1e3
            over = sum(t > 0.02 for t in times)
            print(f"{method:8}" + "".join(f"{cut:8.1f}" for cut in cuts) + f"{over:12}")
        optimal = sum(gap < 2e-6 for gap in gaps)
        print(
            f"greedy is optimal on {optimal / len(gaps):.0%}; gap: mean {np.mean(gaps):.1e}, "
            f"99% {np.quantile(gaps, 0.99):.1e}, worst {max(gaps):.1e}"
        )
