"""The figures of docs/figures are those that their script draws, and read on light and on dark."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

DOCS = Path(__file__).parents[2] / "docs"
FIGURES = sorted((DOCS / "figures").glob("*.svg"))


def test_the_script_draws_them(tmp_path: Path) -> None:
    subprocess.run([sys.executable, DOCS / "site/draw_figures.py", tmp_path], check=True, timeout=60)
    drawn = {file.name: file.read_text("utf-8") for file in tmp_path.iterdir()}
    assert drawn == {file.name: file.read_text("utf-8") for file in FIGURES}


@pytest.mark.parametrize("file", FIGURES, ids=lambda file: file.stem)
def test_every_colour_has_one_for_the_dark(file: Path) -> None:
    style = file.read_text("utf-8").partition("<style>")[2].partition("</style>")[0]
    light, _, dark = style.partition("@media (prefers-color-scheme: dark)")
    coloured = {name for name, body in re.findall(r"([.\w]+) \{([^}]*)\}", light) if "#" in body}
    assert coloured
    assert coloured == set(re.findall(r"([.\w]+) \{", dark))


@pytest.mark.parametrize("file", FIGURES, ids=lambda file: file.stem)
def test_nothing_is_drawn_outside_the_picture(file: Path) -> None:
    root = ElementTree.parse(file).getroot()
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for shape in root.iter("{http://www.w3.org/2000/svg}rect"):
        x, y, w, h = (float(shape.attrib[name]) for name in ("x", "y", "width", "height"))
        assert x >= 0
        assert y >= 0
        assert x + w <= width
        assert y + h <= height
