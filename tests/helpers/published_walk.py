"""Divides the width as the published code of REBASE and of ETS does, written from its description."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction


def published_counts(width: int, scores: Sequence[float], softmax_temperature: float = 0.2) -> list[int]:
    """Continuations of each node: the best takes its share of the width, rounded up, and leaves the rest of
    the width to the rest of the nodes; equal ones in their order."""
    mass = {i: Fraction(math.exp(score / softmax_temperature)) for i, score in enumerate(scores)}
    queue = sorted(mass, key=lambda i: (-scores[i], i))
    counts = [0] * len(queue)
    for place, i in enumerate(queue):
        waiting = sum((mass[j] for j in queue[place:]), Fraction(0))
        share = Fraction(width - sum(counts)) * mass[i] / waiting
        counts[i] = int(-(-share // 1))
    return counts
