"""Colours on a light and on a dark background, and markers, so that nothing depends on colour alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MARKS = ("o", "s", "^", "D", "v", "P", "X", "h")


@dataclass(frozen=True)
class Theme:
    """Colours of a figure.

    colours: after Okabe and Ito (jfly.uni-koeln.de/color), distinguishable with any colour vision, lighter or
    darker as the background needs.
    """

    ground: str
    text: str
    faint: str
    grid: str
    colours: tuple[str, ...]


THEMES = {
    "light": Theme(
        *("#ffffff", "#1f2328", "#59636e", "#d8dee4"),
        ("#0072b2", "#d55e00", "#00875f", "#b8578f", "#8a6d00", "#2f95c9", "#5f5f5f", "#7a3fa0"),
    ),
    "dark": Theme(
        *("#0d1117", "#f0f6fc", "#9aa4af", "#30363d"),
        ("#4ba3e3", "#ff8534", "#2fc496", "#e596c6", "#e8c547", "#8fd3ff", "#b0b0b0", "#c59be8"),
    ),
}


def settings(theme: Theme) -> dict[Any, Any]:
    """Returns matplotlib's settings by name: figures look the same wherever its bundled fonts are present."""
    return {
        "svg.fonttype": "none",  # text stays text: it can be searched, and files stay small
        "svg.hashsalt": "tts",  # with no date in the file: the same runs give the same file
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans", "Verdana", "sans-serif"],
        "font.size": 9,
        "figure.facecolor": theme.ground,
        "savefig.facecolor": theme.ground,
        "axes.facecolor": theme.ground,
        "axes.edgecolor": theme.faint,
        "axes.labelcolor": theme.text,
        "axes.axisbelow": True,
        "axes.grid": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": theme.grid,
        "grid.linewidth": 0.7,
        "text.color": theme.text,
        "text.parse_math": False,  # a strategy's or a problem's name is no formula
        "xtick.color": theme.faint,
        "ytick.color": theme.faint,
        "xtick.labelcolor": theme.text,
        "ytick.labelcolor": theme.text,
    }
