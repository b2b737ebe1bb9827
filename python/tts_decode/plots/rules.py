"""What the points show: the Pareto front, and two lines at equal cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..select.statistics import Interval, paired_difference
from .lines import Line, Point


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """Returns the points that no other dominates, cheapest first.

    A point dominates another if it costs no more, solves no less, and is better in one of the two.
    """
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost.value, -p.accuracy.value)):
        best = front[-1] if front else None
        same = best and (best.cost.value, best.accuracy.value) == (point.cost.value, point.accuracy.value)
        if best is None or point.accuracy.value > best.accuracy.value or same:
            front.append(point)
    return front


class EqualCost(NamedTuple):
    """One line's accuracy minus another's at a cost."""

    cost: float
    difference: Interval


def at_equal_cost(ours: Line, theirs: Line) -> list[EqualCost]:
    """Returns ours - theirs at each cost of a point that both lines reach, cheapest first.

    Empty if their costs do not overlap. Between two points a line's accuracy is linear in the logarithm of
    the cost (in the cost, if one is 0), problem by problem; the interval is Student's paired t over the
    problems that all points have. The lines' costs are treated as known.
    """
    points = [*ours.points, *theirs.points]
    common = set.intersection(*(set(point.solved) for point in points))
    low = max(min(p.cost.value for p in line.points) for line in (ours, theirs))
    high = min(max(p.cost.value for p in line.points) for line in (ours, theirs))
    costs = sorted({p.cost.value for p in points if low <= p.cost.value <= high})
    if not common or low >= high:
        return []
    problems = sorted(common)
    return [
        EqualCost(c, paired_difference(_solved_at(ours, c, problems), _solved_at(theirs, c, problems)))
        for c in costs
    ]


def _solved_at(line: Line, cost: float, problems: Sequence[int]) -> list[float]:
    """Returns the accuracy on each problem, interpolated between the two points around the cost."""
    points = sorted(line.points, key=lambda p: p.cost.value)
    above = next(i for i, p in enumerate(points) if p.cost.value >= cost)
    right = points[above]
    left = points[max(0, above - 1)]
    share = _share(left.cost.value, cost, right.cost.value)
    return [_mixed(left.solved, right.solved, share, index) for index in problems]


def _share(left: float, cost: float, right: float) -> float:
    """Returns how far the cost is from left to right."""
    if right == left:
        return 1.0
    if left <= 0:
        return (cost - left) / (right - left)
    return math.log(cost / left) / math.log(right / left)


def _mixed(left: Mapping[int, float], right: Mapping[int, float], share: float, index: int) -> float:
    return (1 - share) * left[index] + share * right[index]
