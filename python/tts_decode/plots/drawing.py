"""Draws the figures with matplotlib."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from ..core.visible import visible
from ..extras import require
from .captions import Caption
from .labels import label_ends, label_points, ringed
from .lines import Line, Point
from .measures import Measure
from .memory import Held
from .rules import at_equal_cost, pareto_front
from .themes import MARKS, THEMES, Theme, settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_LINES = len(MARKS)
"""Maximum number of lines, or pairs of a dense and a sparse line, in a figure."""

_WIDTH, _DPI = 7.0, 200  # inches; a PNG is 1,400 pixels wide
_LOGARITHMIC = 4  # ratio of costs from which the axis is logarithmic
_RING = 11.0  # diameter, points
_SUBTITLE_COLUMNS, _NOTE_COLUMNS = 100, 118  # characters per line


def draw_accuracy(
    path: Path,
    lines: Sequence[Line],
    measure: Measure,
    caption: Caption,
    *,
    theme: str = "light",
    pareto: bool = False,
) -> None:
    """Draws accuracy over cost.

    Below it, for a strategy with a dense and a sparse line, it draws their difference at equal cost.

    Args:
        path: of an .svg or a .png, which is overwritten.
        theme: "light" or "dark".
        pareto: marks the Pareto front.

    Raises ValueError for no lines or more than `MOST_LINES`; OSError if the file cannot be written.
    """
    groups = list(dict.fromkeys(line.name for line in lines))
    looks = _looks(theme, groups)
    pairs = _pairs(lines)
    with _figure(path, caption, looks, panels=2 if pairs else 1) as (figure, panels):
        axes = panels[0]
        points = [point for line in lines for point in line.points]
        _scale_costs(axes, [p.cost.value for p in points], [e for p in points for e in p.cost[1:]])
        for line in lines:
            _draw_line(axes, line, groups.index(line.name), looks)
        front = pareto_front(points) if pareto else []
        if front:
            _draw_front(axes, front, looks)
        axes.set_ylabel("problems solved")
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        low = min(point.accuracy.low for point in points)
        high = max(point.accuracy.high for point in points)
        margin = 0.06 * (high - low)
        axes.set_ylim(max(-0.03, low - margin), min(1.03, high + margin))
        panels[-1].set_xlabel(measure.axis)
        if pairs:
            _draw_differences(panels[1], pairs, groups, looks)
        figure.canvas.draw()
        colours = [_colour(groups.index(line.name), looks) for line in lines]
        leaders = label_ends(
            axes, [(line.label, *_at(line.points[-1]), c) for line, c in zip(lines, colours, strict=True)]
        )
        rings = ringed(axes, [_at(point) for point in front], _RING)
        label_points(axes, list(zip(lines, colours, strict=True)), [*leaders, *rings])


def draw_memory(path: Path, held: Sequence[Held], caption: Caption, *, theme: str = "light") -> None:
    """Draws KV over the duration of searches: resident filled, unshared dashed.

    Arguments and errors are those of `draw_accuracy`.
    """
    looks = _looks(theme, [one.label for one in held])
    with _figure(path, caption, looks) as (figure, panels):
        axes = panels[0]
        for number, one in enumerate(held):
            colour = _colour(number, looks)
            seconds = [0.0, *one.seconds]
            resident = [one.resident[0], *one.resident]
            unshared = [one.unshared[0], *one.unshared]
            axes.plot(seconds, resident, drawstyle="steps-pre", color=colour, lw=1.6)
            axes.fill_between(seconds, resident, step="pre", color=colour, alpha=0.15, lw=0)
            axes.plot(seconds, unshared, drawstyle="steps-pre", color=colour, lw=1.2, ls=(0, (4, 2)))
        axes.set_xlim(0, 1.02 * max(one.seconds[-1] for one in held))
        axes.set_ylim(0, 1.05 * max(max(*one.resident, *one.unshared) for one in held))
        axes.set_xlabel("seconds since the search began")
        axes.set_ylabel("MiB of KV")
        figure.canvas.draw()
        ends = []
        for number, one in enumerate(held):
            at_end = [("resident", one.resident[-1]), ("unshared", one.unshared[-1])]
            told = at_end if len(held) == 1 else [(one.label, one.resident[-1])]
            ends += [(label, one.seconds[-1], mib, _colour(number, looks)) for label, mib in told]
        label_ends(axes, ends)


def _looks(theme: str, names: Sequence[str]) -> Theme:
    """Returns the theme if it can show lines of these names."""
    if theme not in THEMES:
        raise ValueError(f"theme: got {theme!r}, expected {' or '.join(THEMES)}")
    if not names:
        raise ValueError("there is nothing to draw; give a run in which a search has ended")
    if len(names) > MOST_LINES:
        raise ValueError(
            f"{len(names)} lines ({'; '.join(names[:3])}; ...), but a figure tells {MOST_LINES} apart; give "
            "fewer runs or strategies"
        )
    return THEMES[theme]


@contextmanager
def _figure(
    path: Path, caption: Caption, theme: Theme, panels: int = 1
) -> Iterator[tuple[Figure, list[Axes]]]:
    """Yields axes stacked vertically, with title and notes; writes them at the end of the block."""
    require("matplotlib")
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    title = visible(caption.title)
    notes = fill(visible(" ".join(caption.notes)), _NOTE_COLUMNS, break_on_hyphens=False)
    subtitle = fill(visible(caption.subtitle), _SUBTITLE_COLUMNS, break_on_hyphens=False)
    head = 0.42 + 0.17 * (subtitle.count("\n") + 1)
    foot = 0.58 + 0.14 * (notes.count("\n") + 1)
    middle = 3.1 + 1.35 * (panels - 1)
    with matplotlib.rc_context(settings(theme)):
        figure = Figure(figsize=(_WIDTH, head + middle + foot), dpi=_DPI)
        FigureCanvasAgg(figure)
        height = figure.get_figheight()
        # The right margin is for the lines' labels.
        box = {
            "left": 0.095,
            "right": 0.76,
            "top": 1 - head / height,
            "bottom": foot / height,
            "hspace": 0.16,
        }
        ratios = [3.1, 1.2][:panels]
        made = figure.subplots(
            panels, sharex=True, squeeze=False, gridspec_kw=box | {"height_ratios": ratios}
        )
        figure.text(0.02, 1 - 0.1 / height, title, va="top", weight="bold", size=11)
        figure.text(0.02, 1 - 0.34 / height, subtitle, va="top", size=8, color=theme.faint)
        figure.text(0.02, 0.08 / height, notes, va="bottom", size=7, color=theme.faint)
        axes = [row[0] for row in made]
        for one in axes:
            one.tick_params(which="both", length=0)
        yield figure, axes
        told = {"Title": title, "Description": f"{subtitle}\n{notes}"}
        figure.savefig(path, metadata=told | ({"Date": None} if path.suffix == ".svg" else {}))


def _scale_costs(axes: Axes, values: Sequence[float], ends: Sequence[float]) -> None:
    """Makes the axis logarithmic if costs are far apart; otherwise linear from 0."""
    from matplotlib.ticker import LogLocator

    ends = [end for end in ends if math.isfinite(end)]
    low, high = min(*values, *values[:1]), max(*values, *values[:1])
    if low > 0 and high / low >= _LOGARITHMIC:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter("")
        axes.set_xlim(min([low, *(end for end in ends if end > 0)]) / 1.15, max([high, *ends]) * 1.15)
    else:
        axes.set_xlim(0, max([high, *ends]) * 1.08 or 1.0)
    axes.xaxis.set_major_formatter(lambda value, _: _number(value))


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _colour(group: int, theme: Theme) -> str:
    return theme.colours[group]


def _at(point: Point) -> tuple[float, float]:
    return point.cost.value, point.accuracy.value


def _draw_line(axes: Axes, line: Line, group: int, theme: Theme) -> None:
    colour = _colour(group, theme)
    xs, ys = zip(*map(_at, line.points), strict=True)
    axes.plot(xs, ys, color=colour, lw=1.6, ls="-" if line.sparse is None else (0, (4, 2)), zorder=3)
    for point in line.points:
        x, y = _at(point)
        bars: dict[str, Any] = {"color": colour, "lw": 0.9, "alpha": 0.45, "zorder": 2}
        axes.plot([x, x], point.accuracy[1:], **bars)
        if math.isfinite(point.cost.low):
            axes.plot(point.cost[1:], [y, y], **bars)
        inner = theme.ground if point.unfinished else colour
        axes.plot(
            [x],
            [y],
            MARKS[group],
            ms=6,
            mfc=inner,
            mec=colour if point.unfinished else theme.ground,
            zorder=4,
        )


def _draw_front(axes: Axes, front: Sequence[Point], theme: Theme) -> None:
    """Draws a ring around each point of the front, and the best accuracy at each cost."""
    xs, ys = map(list, zip(*map(_at, front), strict=True))
    axes.plot(xs, ys, "o", ms=_RING, mfc="none", mec=theme.text, mew=1.1, zorder=5)
    edge = axes.get_xlim()[1]
    axes.plot([*xs, edge], [*ys, ys[-1]], color=theme.text, lw=0.9, ls=":", drawstyle="steps-post", zorder=1)


def _pairs(lines: Sequence[Line]) -> list[tuple[Line, Line]]:
    """Returns each sparse line with the dense one of its name."""
    dense = {line.name: line for line in lines if line.sparse is None}
    return [(line, dense[line.name]) for line in lines if line.sparse is not None and line.name in dense]


def _draw_differences(
    axes: Axes, pairs: Sequence[tuple[Line, Line]], groups: Sequence[str], theme: Theme
) -> None:
    axes.axhline(0, color=theme.faint, lw=0.9)
    axes.set_title("sparse less dense at equal cost, points", size=8, loc="left", pad=3, color=theme.text)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:+.0f}" if value else "0")
    drawn = False
    for sparse, dense in pairs:
        found = at_equal_cost(sparse, dense)
        if not found:
            continue
        drawn = True
        colour = _colour(groups.index(sparse.name), theme)
        costs = [one.cost for one in found]
        mean, low, high = zip(*([100 * end for end in one.difference] for one in found), strict=True)
        axes.fill_between(costs, low, high, color=colour, alpha=0.2, lw=0)
        axes.plot(costs, mean, color=colour, lw=1.4, ls=(0, (4, 2)), marker=".")
    if not drawn:
        axes.text(
            0.5,
            0.5,
            "no cost in common",
            ha="center",
            va="center",
            transform=axes.transAxes,
            color=theme.faint,
        )
        axes.set_yticks([])
