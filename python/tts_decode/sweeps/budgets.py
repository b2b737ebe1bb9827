"""The cost of reaching an accuracy: the cheapest setting of a sweep that meets a target."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..select import Interval
from .intervals import mean_interval
from .searches import Search, by_problem, by_setting

UNITS: dict[str, Callable[[Search], float]] = {
    "tokens": lambda search: search.tokens,
    "seconds": lambda search: search.seconds,
    "mean_kv_bytes": lambda search: search.mean_kv_bytes,
    "peak_kv_bytes": lambda search: search.peak_kv_bytes,
    "eflops": lambda search: search.eflops,
}
"""Units of a budget."""


@dataclass(frozen=True)
class Budget:
    """The cheapest width of a strategy whose accuracy meets the target, counted in one unit.

    Attributes:
        width, amount, accuracy: None if no width meets it. The amount is the mean of the searches that gave a
            result.
        sure: whether the lower end of the accuracy's 95 % interval meets the target too.
    """

    strategy: str
    sparse: bool
    target: float
    unit: str
    width: int | None = None
    amount: float | None = None
    accuracy: Interval | None = None
    sure: bool = False


def budgets_at(searches: Sequence[Search], target: float) -> list[Budget]:
    """Returns, for each strategy and unit, the least budget at which enough problems are solved.

    Enough is a share of at least `target`, in (0, 1], among the widths measured. Nothing is interpolated
    between widths: accuracy need not grow with them.

    Raises ValueError for another target.
    """
    if not 0 < target <= 1:
        raise ValueError(f"target: got {target}, expected a share of the problems, above 0 and at most 1")
    families: dict[tuple[str, bool], list[list[Search]]] = {}
    for (strategy, _, sparse), group in by_setting(searches).items():
        families.setdefault((strategy, sparse), []).append(group)
    return [_cheapest(groups, target, unit) for groups in families.values() for unit in UNITS]


def _cheapest(groups: Sequence[Sequence[Search]], target: float, unit: str) -> Budget:
    strategy, _, sparse = groups[0][0].setting
    best = Budget(strategy, sparse, target, unit)
    for group in groups:
        solved = [math.fsum(s.solved for s in seeds) / len(seeds) for seeds in by_problem(group)]
        accuracy = mean_interval(solved).interval
        spent = [UNITS[unit](search) for search in group if search.error is None]
        if accuracy.value < target or not spent:
            continue
        amount = math.fsum(spent) / len(spent)
        if best.amount is None or amount < best.amount:
            sure = accuracy.low >= target  # False if the end is NaN
            best = Budget(strategy, sparse, target, unit, group[0].width, amount, accuracy, sure)
    return best
