"""Plots of the measurements, as SVG or PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GREY = "#808080"  # readable on white and on black, as is the rest of the palette
COLOURS = ("#2a9d8f", "#e9a23b", "#d1495b", "#5b8def", "#9b72cf", "#8d99ae", "#b5a642", "#7f7f7f")


def bars(path: Path, shares: Mapping[str, Mapping[str, float]], label: str) -> None:
    """Draws a horizontal bar for each name, made of stacked parts."""
    axes = _axes(1.1 + 0.3 * len(shares))
    names = list(shares)
    parts = list(dict.fromkeys(part for name in names for part in shares[name]))
    left = [0.0] * len(names)
    for colour, part in zip(cycle(COLOURS), parts, strict=False):
        widths = [100 * shares[name].get(part, 0.0) for name in names]
        axes.barh(names, widths, left=left, height=0.6, color=colour, label=part)
        left = [begin + width for begin, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlim(0, max(100.0, *left))
    axes.set_xlabel(label)
    _save(axes, path, legend=len(parts))


def lines(
    path: Path, x: Sequence[float], curves: Mapping[str, Sequence[float]], labels: tuple[str, str]
) -> None:
    """Draws a curve for each name over x, both axes logarithmic."""
    axes = _axes(3.2 + 0.2 * (len(curves) // 4))
    from matplotlib.ticker import LogLocator

    for number, (name, values) in enumerate(curves.items()):
        again, colour = divmod(number, len(COLOURS))
        axes.plot(x, values, "o--" if again else "o-", ms=4, color=COLOURS[colour], label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(x, [f"{value:g}" for value in x])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    _save(axes, path, legend=len(curves))


def styled_pyplot() -> Any:
    """Returns matplotlib.pyplot, configured to draw into files in the style of all our plots."""
    require("matplotlib")
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    matplotlib.rcParams |= {
        "svg.fonttype": "none",
        "svg.hashsalt": "tts",  # with no date in the file: the same results give the same file
        "font.size": 9,
        "font.family": "sans-serif",
        "savefig.transparent": True,
        **{name: GREY for name in ("text.color", "axes.labelcolor", "axes.edgecolor")},
        **{name: GREY for name in ("xtick.color", "ytick.color", "legend.labelcolor")},
    }
    return pyplot


def _axes(height: float) -> Axes:
    axes: Axes = styled_pyplot().subplots(figsize=(7.5, height))[1]
    axes.grid(color=GREY, alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _save(axes: Axes, path: Path, legend: int) -> None:
    from matplotlib import pyplot

    figure = axes.get_figure()
    assert figure is not None
    if legend > 1:
        handles = axes.get_legend_handles_labels()
        figure.legend(*handles, loc="upper center", ncols=min(legend, 4), frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.08 * -(-legend // 4) if legend > 1 else 1))  # type: ignore[union-attr]
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)  # type: ignore[union-attr]
    pyplot.close(figure)  # type: ignore[arg-type]
