"""Ranks scores, and aggregates the scores of a branch's steps."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Sequence

Aggregation = Callable[[Sequence[float]], float]
"""Maps the scores of a branch's steps, in order and at least one, to one score."""


def _last(scores: Sequence[float]) -> float:
    return scores[-1]


AGG_STRATEGIES: dict[str, Aggregation] = {
    "last": _last,
    "min": min,
    "prod": math.prod,
    "mean": lambda scores: math.fsum(scores) / len(scores),
    "max": max,
    "median": statistics.median,
    "sum": math.fsum,
    # The last score of a scorer that reads the whole response as one step covers everything.
    "whole": _last,
}
"""The named aggregations; besides them there is "window:k", the mean of the last `k` scores."""

_WINDOW = re.compile(r"window:([1-9][0-9]*)")


def require_finite(name: str, values: Sequence[float]) -> None:
    """Raises ValueError, naming the argument and the index, if a value is NaN or infinite."""
    for i, value in enumerate(values):
        if not math.isfinite(value):
            raise ValueError(f"{name}[{i}]: got {value}, expected a finite number")


def aggregation(agg_strategy: str) -> Aggregation:
    """Returns the function that `agg_strategy` names, which aggregates a sequence of step scores.

    ==============  ===============================================================================
    "last"          the last score: a process reward model's view of the text so far
    "min"           the weakest step
    "prod"          the product; for scores that can be negative it has no useful meaning
    "mean"          the mean
    "max"           the best step
    "median"        the middle one, or the mean of the two in the middle
    "sum"           the sum: cumulative reward, which grows with the number of steps
    "window:k"      the mean of the last `k`, or of all if there are fewer
    "whole"         the last score, for scorers that read the whole response as one step, as
                    `RewardModel(..., agg_strategy="whole")` does
    ==============  ===============================================================================

    Raises ValueError for another name.
    """
    window = _WINDOW.fullmatch(agg_strategy) if isinstance(agg_strategy, str) else None
    if window is not None:
        count = int(window[1])
        return lambda scores: math.fsum(scores[-count:]) / len(scores[-count:])
    if agg_strategy not in AGG_STRATEGIES:
        known = ", ".join(AGG_STRATEGIES)
        raise ValueError(f"agg_strategy: got {agg_strategy!r}, expected one of {known} or window:k")
    return AGG_STRATEGIES[agg_strategy]


def aggregate(scores: Sequence[float], agg_strategy: str = "last") -> float:
    """Returns one score for a branch from the scores of its steps, in order, as `aggregation` describes."""
    fold = aggregation(agg_strategy)
    if not scores:
        raise ValueError("scores: got nothing, expected at least one step score")
    return fold(scores)


def top_k(scores: Sequence[float], k: int) -> list[int]:
    """Returns the indices of the `k` largest scores (or all), best first, ties to the lower index."""
    if k < 1:
        raise ValueError(f"k: got {k}, expected at least 1")
    require_finite("scores", scores)
    return sorted(range(len(scores)), key=lambda i: -scores[i])[:k]
