"""Labels keep apart, near what they name, and off what is drawn."""

from __future__ import annotations

import pytest
from tts_decode.plots.placing import Box, along, beside, spread


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ([], []),
        ([50], [50]),
        ([-5, 200], [0, 100]),
        ([10, 50], [10, 50]),
        ([50, 50], [45, 55]),
        ([52, 50, 51], [61, 41, 51]),  # in the order of what they want
        ([100, 99], [100, 90]),  # pushed back from the edge
        ([0, 0, 50], [0, 10, 50]),
        ([50, 55, 60, 64], [42.25, 52.25, 62.25, 72.25]),  # one block around the mean
    ],
)
def test_spread(wanted: list[float], expected: list[float]) -> None:
    assert spread(wanted, 10, 0, 100) == pytest.approx(expected)


def test_spread_with_too_many() -> None:
    assert spread([5] * 5, 10, 0, 20) == pytest.approx([0, 5, 10, 15, 20])


def test_beside() -> None:
    inside = Box(0, 0, 100, 100)
    first = beside((50, 50), (10, 4), 2, [], inside)
    assert first == Box(38, 52, 48, 56)  # left above
    assert beside((50, 50), (10, 4), 2, [Box(0, 51, 49, 60)], inside) == Box(52, 44, 62, 48)  # right below
    assert beside((50, 50), (10, 4), 2, [Box(0, 0, 100, 100)], inside) is None
    assert beside((0, 100), (10, 4), 2, [], inside) == Box(2, 94, 12, 98)  # it stays inside


def test_along_covers_the_line() -> None:
    boxes = along((0, 0), (30, 40), 2)
    for share in range(101):
        x, y = 0.3 * share, 0.4 * share
        assert any(box.meets(Box(x - 0.01, y - 0.01, x + 0.01, y + 0.01)) for box in boxes)
    assert not any(box.meets(Box(20, 10, 30, 20)) for box in boxes)
