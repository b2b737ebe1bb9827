"""The texts of a figure lie within it, and overlap nothing else that is drawn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("matplotlib")

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tts_decode.plots import Line, Point
from tts_decode.plots.labels import label_ends, label_points, ringed
from tts_decode.plots.placing import Box
from tts_decode.select.statistics import Interval


@contextmanager
def axes(right: float = 0.76) -> Iterator[Any]:
    """Of a drawn figure as wide as those of the command, from 0 to 1 in both directions."""
    figure = Figure(figsize=(7, 4), dpi=200)
    FigureCanvasAgg(figure)
    (one,) = figure.subplots(1, 1, squeeze=False, gridspec_kw={"left": 0.1, "right": right})[0]
    one.set_xlim(0, 1)
    one.set_ylim(0, 1)
    figure.canvas.draw()
    yield one


def box_of(text: Any) -> Box:
    return Box(*text.get_window_extent().extents)


@pytest.mark.parametrize("name", ["a_strategy_with_a_name_of_40_characters_", "W" * 40, "i" * 40, "ets"])
def test_a_name_of_any_length_is_within_the_figure(name: str) -> None:
    with axes() as drawn:
        label_ends(drawn, [(name, 0.5, 0.5, "black"), (name, 0.5, 0.6, "red")])
        drawn.figure.canvas.draw()
        for text in drawn.texts:
            assert text.get_text().replace("\n", "") == name
            label = text.get_tightbbox()  # without the thin line, which is a patch of its own
            assert label.x1 <= drawn.figure.bbox.x1 + 1
            assert box_of(text).right <= drawn.figure.bbox.x1 + 1


def test_widths_lie_on_no_ring_and_no_thin_line() -> None:
    """Of three lines that end in one place near a corner, where thin lines go to the labels."""
    points = [(0.9, 0.02), (0.92, 0.02), (0.94, 0.02)]
    with axes() as drawn:
        leaders = label_ends(drawn, [(f"s{i}", *at, "black") for i, at in enumerate(points)])
        rings = ringed(drawn, points, 11.0)
        lines = [
            (Line(f"s{i}", None, (Point(Interval(y, y, y), Interval(x, x, x), {}, {}, (), "n=8"),)), "black")
            for i, (x, y) in enumerate(points)
        ]
        before = len(drawn.texts)
        label_points(drawn, lines, [*leaders, *rings])
        drawn.figure.canvas.draw()
        widths = drawn.texts[before:]
        assert widths
        for text in widths:
            assert not any(box_of(text).meets(other) for other in (*leaders, *rings))


def test_a_ring_is_as_large_as_it_is_drawn() -> None:
    """11 points of 200 / 72 pixels; the steps reach the right end of the axes."""
    with axes() as drawn:
        found = ringed(drawn, [(0.25, 0.5), (0.75, 1.0)], 11.0)
        x, y = drawn.transData.transform((0.25, 0.5))
        assert found[0] == pytest.approx(Box(x, y, x, y).grown(11 * 200 / 72 / 2))
        assert max(box.right for box in found) == pytest.approx(drawn.get_window_extent().x1 + 1)
        assert ringed(drawn, [], 11.0) == []
