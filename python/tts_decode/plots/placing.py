"""Places labels so that none overlaps another or the drawing. All lengths have one unit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Box(NamedTuple):
    left: float
    bottom: float
    right: float
    top: float

    def grown(self, margin: float) -> Box:
        return Box(self.left - margin, self.bottom - margin, self.right + margin, self.top + margin)

    def meets(self, other: Box) -> bool:
        return (
            self.left < other.right
            and other.left < self.right
            and self.bottom < other.top
            and other.bottom < self.top
        )

    def within(self, other: Box) -> bool:
        return (
            self.left >= other.left
            and self.right <= other.right
            and self.bottom >= other.bottom
            and self.top <= other.top
        )


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Returns positions at least `gap` apart and within low..high, near the wanted ones and in their order.

    If not all fit, they are spaced evenly from low to high.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    if len(order) > 1 and gap * (len(order) - 1) > high - low:
        gap = (high - low) / (len(order) - 1)
    # Labels that touch move as one block, around the mean of the positions its members want.
    blocks: list[tuple[float, list[int]]] = []
    for i in order:
        middle, members = min(max(wanted[i], low), high), [i]
        while blocks and blocks[-1][0] + gap * (len(blocks[-1][1]) + len(members)) / 2 > middle:
            members = blocks.pop()[1] + members
            half = gap * (len(members) - 1) / 2
            middle = sum(wanted[m] for m in members) / len(members)
            middle = min(max(middle, low + half), high - half)
        blocks.append((middle, members))
    found = [0.0] * len(wanted)
    for middle, members in blocks:
        for place, i in enumerate(members):
            found[i] = middle + gap * (place - (len(members) - 1) / 2)
    return found


def along(start: tuple[float, float], end: tuple[float, float], step: float) -> list[Box]:
    """Returns boxes of this side over a straight line; what meets none of them does not meet the line."""
    count = max(1, math.ceil(math.dist(start, end) / step * 2))
    places = [
        (start[0] + (end[0] - start[0]) * i / count, start[1] + (end[1] - start[1]) * i / count)
        for i in range(count + 1)
    ]
    return [Box(x, y, x, y).grown(step / 2) for x, y in places]


def beside(
    anchor: tuple[float, float],
    size: tuple[float, float],
    distance: float,
    taken: Sequence[Box],
    inside: Box,
) -> Box | None:
    """Returns the first free box of this size near the anchor, `distance` away or twice that.

    Corners are tried first, then sides; None if none is free.
    """
    (x, y), (width, height) = anchor, size
    for away in (distance, 2 * distance):
        for dx, dy in ((-1, 1), (1, -1), (1, 1), (-1, -1), (0, 1), (0, -1), (-1, 0), (1, 0)):
            left = x - width / 2 + dx * (width / 2 + away)
            bottom = y - height / 2 + dy * (height / 2 + away)
            box = Box(left, bottom, left + width, bottom + height)
            if box.within(inside) and not any(box.meets(other) for other in taken):
                return box
    return None
