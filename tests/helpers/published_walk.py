"""Divides the width as the published code of REBASE and of ETS does, and exactly; chooses leaves as ETS does.

Written from the descriptions, in exact fractions, without any of our selection rules.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations


def published_counts(width: int, scores: Sequence[float], softmax_temperature: float = 0.2) -> list[int]:
    """Continuations of each node: the best takes its share of the width, rounded up, and leaves the rest of
    the width to the rest of the nodes; equal ones in their order."""
    mass = dict(enumerate(_masses(scores, softmax_temperature)))
    queue = sorted(mass, key=lambda i: (-scores[i], i))
    counts = [0] * len(queue)
    for place, i in enumerate(queue):
        waiting = sum((mass[j] for j in queue[place:]), Fraction(0))
        share = Fraction(width - sum(counts)) * mass[i] / waiting
        counts[i] = int(-(-share // 1))
    return counts


def exact_counts(width: int, scores: Sequence[float], softmax_temperature: float = 0.2) -> list[int]:
    """Continuations of each node by largest remainders; equal remainders in their order."""
    mass = _masses(scores, softmax_temperature)
    quotas = [width * m / sum(mass, Fraction(0)) for m in mass]
    counts = [int(quota // 1) for quota in quotas]
    for i in sorted(range(len(mass)), key=lambda i: (-(quotas[i] % 1), i))[: width - sum(counts)]:
        counts[i] += 1
    return counts


def best_leaves(
    outcomes: Sequence[Fraction], paths: Sequence[set[int]], costs: Sequence[int], lambda_b: Fraction
) -> list[bool]:
    """The leaves that ETS keeps without clusters, of all sets; among equal ones, more and earlier leaves.

    paths: of each leaf the nodes from the root to it. costs: of each node.
    """
    whole = sum(costs[node] for node in set().union(*paths))

    def rank(kept: tuple[int, ...]) -> tuple[Fraction, int, int]:
        cost = sum(costs[node] for node in set().union(*(paths[i] for i in kept)))
        value = sum((outcomes[i] for i in kept), Fraction(0)) - lambda_b * Fraction(cost, whole)
        return value, len(kept), -sum(kept)

    count = len(paths)
    every = (kept for size in range(1, count + 1) for kept in combinations(range(count), size))
    best = max(every, key=rank)
    return [i in best for i in range(count)]


def _masses(scores: Sequence[float], softmax_temperature: float) -> list[Fraction]:
    return [Fraction(math.exp(score / softmax_temperature)) for score in scores]
