"""Labels lines in the margin beside their ends, and points where there is room."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from textwrap import fill
from typing import TYPE_CHECKING, Any

from ..core.visible import visible
from .lines import Line
from .placing import Box, along, beside, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 24  # most characters per line of a label; fewer if the margin is too narrow
_LINE = 10.0  # height of a line of text, points
_LEFT = 1.03  # left edge of the labels, as a share of the axes' width
_STYLE: dict[str, Any] = {"weight": "bold", "size": 8}


def label_ends(axes: Axes, ends: Sequence[tuple[str, float, float, str]]) -> list[Box]:
    """Places labels right of the axes, each with a thin line from its end, in the order of the ends' heights.

    ends: label, x, y and colour of each. Returns boxes over those lines, in pixels.
    """
    per_point = axes.figure.dpi / 72
    box = axes.get_window_extent()
    room = axes.figure.bbox.x1 - box.x0 - _LEFT * box.width
    texts = [_wrapped(axes, visible(label), room) for label, *_ in ends]
    gap = per_point * _LINE * (max(text.count("\n") for text in texts) + 1.2)
    heights = [float(axes.transData.transform((x, y))[1]) for _, x, y, _ in ends]
    placed = spread(heights, gap, box.y0 + gap / 2, box.y1 - gap / 2)
    leaders = []
    for text, (_, x, y, colour), height in zip(texts, ends, placed, strict=True):
        share = (height - box.y0) / box.height
        axes.annotate(
            text,
            xy=(x, y),
            xytext=(_LEFT, share),
            textcoords="axes fraction",
            va="center",
            color=colour,
            **_STYLE,
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
        begin = axes.transData.transform((x, y))
        end = box.x0 + _LEFT * box.width, height
        leaders += along((float(begin[0]), float(begin[1])), end, 2 * per_point)
    return leaders


def _wrapped(axes: Axes, text: str, room: float) -> str:
    """Wraps text to lines of as many characters as fit into `room`, in pixels."""
    for columns in range(_COLUMNS, 1, -1):
        lines = fill(text, columns)
        probe = axes.text(0, 0, lines, **_STYLE)
        width = probe.get_window_extent().width
        probe.remove()
        if width <= room:
            break
    return lines


def label_points(axes: Axes, lines: Sequence[tuple[Line, str]], others: Sequence[Box]) -> None:
    """Labels the points of each line with their widths, in its colour.

    A label without a free place near its point is left out. others: what is already drawn besides the lines,
    in pixels.
    """
    per_point = axes.figure.dpi / 72
    inside = Box(*axes.get_window_extent().extents)

    def at(cost: float, accuracy: float) -> tuple[float, float]:
        x, y = axes.transData.transform((cost, accuracy))
        return float(x), float(y)

    taken = list(others)
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


def ringed(axes: Axes, points: Sequence[tuple[float, float]], size: float) -> list[Box]:
    """Returns boxes, in pixels, over a ring around each point and over the steps between points.

    size: of the ring, in points. The last step extends to the right end.
    """
    half = axes.figure.dpi / 72 * size / 2
    places = [(float(x), float(y)) for x, y in map(axes.transData.transform, points)]
    found = [Box(x, y, x, y).grown(half) for x, y in places]
    for (x, y), (following, higher) in pairwise(places):
        found += [Box(x, y, following, y).grown(1), Box(following, y, following, higher).grown(1)]
    return [*found, *(Box(x, y, axes.get_window_extent().x1, y).grown(1) for x, y in places[-1:])]
