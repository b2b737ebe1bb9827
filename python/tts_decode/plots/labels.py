"""Labels of lines, in the margin beside their ends, and of points, where there is room."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from textwrap import fill
from typing import TYPE_CHECKING

from ..core.visible import visible
from .lines import Line
from .placing import Box, along, beside, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 24  # characters of a label in a line
_LINE = 10.0  # points that a line of text takes


def label_ends(axes: Axes, ends: Sequence[tuple[str, float, float, str]]) -> None:
    """ends: label, x, y and colour of each. Labels are right of the axes, each with a thin line from its end,
    in the order of the ends' heights."""
    per_point = axes.figure.dpi / 72
    box = axes.get_window_extent()
    texts = [fill(visible(label), _COLUMNS) for label, *_ in ends]
    gap = per_point * _LINE * (max(text.count("\n") for text in texts) + 1.2)
    heights = [float(axes.transData.transform((x, y))[1]) for _, x, y, _ in ends]
    placed = spread(heights, gap, box.y0 + gap / 2, box.y1 - gap / 2)
    for text, (_, x, y, colour), height in zip(texts, ends, placed, strict=True):
        share = (height - box.y0) / box.height
        axes.annotate(
            text,
            xy=(x, y),
            xytext=(1.03, share),
            textcoords="axes fraction",
            va="center",
            color=colour,
            weight="bold",
            size=8,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "lw": 0.6,
                "alpha": 0.5,
                "shrinkA": 2,
                "shrinkB": 4,
                "relpos": (0, 0.5),
            },
        )


def label_points(axes: Axes, lines: Sequence[tuple[Line, str]]) -> None:
    """The widths beside the points of each line, in its colour. A label for which no place near its point is
    free is left out."""
    per_point = axes.figure.dpi / 72
    inside = Box(*axes.get_window_extent().extents)

    def at(cost: float, accuracy: float) -> tuple[float, float]:
        x, y = axes.transData.transform((cost, accuracy))
        return float(x), float(y)

    taken = []
    for line, _ in lines:
        ways = [at(point.cost.value, point.accuracy.value) for point in line.points]
        for start, end in pairwise(ways):
            taken += along(start, end, 2 * per_point)
        for point, (x, y) in zip(line.points, ways, strict=True):
            taken.append(Box(x, y, x, y).grown(4 * per_point))
            low, high = (at(point.cost.value, end)[1] for end in point.accuracy[1:])
            taken.append(Box(x, low, x, high).grown(0.5 * per_point))
            if math.isfinite(point.cost.low):
                left, right = (at(end, point.accuracy.value)[0] for end in point.cost[1:])
                taken.append(Box(left, y, right, y).grown(0.5 * per_point))
    for line, colour in lines:
        for point in line.points:
            size = per_point * 4.4 * len(point.width), per_point * 7
            box = beside(at(point.cost.value, point.accuracy.value), size, 4 * per_point, taken, inside)
            if box is None or not point.width:
                continue
            taken.append(box)
            middle = (box.left + box.right) / 2, (box.bottom + box.top) / 2
            x, y = axes.transData.inverted().transform(middle)
            axes.text(x, y, visible(point.width), ha="center", va="center", size=7, color=colour, zorder=6)
