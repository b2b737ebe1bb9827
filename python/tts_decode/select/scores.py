"""Ranking scores, and folding the scores of a branch's steps into one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

AGG_STRATEGIES: dict[str, Callable[[Sequence[float]], float]] = {
    "last": lambda scores: scores[-1],
    "min": min,
    "prod": math.prod,
    "mean": lambda scores: math.fsum(scores) / len(scores),
}


def require_finite(name: str, values: Sequence[float]) -> None:
    """Raise ValueError, naming the argument and the index, if a value is NaN or infinite."""
    for i, value in enumerate(values):
        if not math.isfinite(value):
            raise ValueError(f"{name}[{i}] is {value}; expected a finite number")


def aggregate(scores: Sequence[float], agg_strategy: str = "last") -> float:
    """One score for a branch from the scores of its steps, in order: "last", "min", "prod" or "mean".

    "prod" reads scores as probabilities; for scores that can be negative it has no useful meaning.
    """
    if agg_strategy not in AGG_STRATEGIES:
        raise ValueError(f"agg_strategy={agg_strategy!r}; expected one of {', '.join(AGG_STRATEGIES)}")
    if not scores:
        raise ValueError("scores is empty; expected at least one step score")
    return AGG_STRATEGIES[agg_strategy](scores)


def top_k(scores: Sequence[float], k: int) -> list[int]:
    """Indices of the `k` largest scores (all if there are fewer), best first, ties to the lower index."""
    if k < 1:
        raise ValueError(f"k={k}; expected at least 1")
    require_finite("scores", scores)
    return sorted(range(len(scores)), key=lambda i: -scores[i])[:k]
