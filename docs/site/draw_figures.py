"""Draws the figures of docs/explanations into docs/figures: python docs/site/draw_figures.py

Each is an SVG that follows the reader's theme, light or dark, in the site and wherever else it is shown.
"""

from __future__ import annotations

import sys
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "figures"
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2430; }
.small { font-size: 11px; } .mono { font-family: ui-monospace, monospace; }
.middle { text-anchor: middle; } .end { text-anchor: end; } .bold { font-weight: 600; }
.line { stroke: #5b6270; stroke-width: 1.3; fill: none; }
.shared { fill: #bcd0f7; stroke: #3b62b3; }
.a { fill: #f6d4a8; stroke: #a8702a; }
.b { fill: #c3e3bd; stroke: #478a3d; } .c { fill: #e3c5ea; stroke: #8c4c9c; }
.none { fill: none; stroke: #9aa1ad; }
@media (prefers-color-scheme: dark) {
text { fill: #e3e6ee; } .line { stroke: #9aa3b5; }
.shared { fill: #2c4377; stroke: #87a9f0; } .a { fill: #6b4a1f; stroke: #e0b271; }
.b { fill: #2d5427; stroke: #8fcb84; } .c { fill: #573061; stroke: #cf9ade; } .none { stroke: #6d7483; }
}
"""


def text(x: float, y: float, words: str, kind: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{words}</text>'


def box(x: float, y: float, width: float, height: float, kind: str) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="3" class="{kind}"/>'


def page(x: float, y: float, number: int, kind: str, width: float = 36) -> str:
    return box(x, y, width, 24, kind) + text(x + width / 2, y + 16.5, str(number), "middle small mono")


def line(*points: tuple[float, float], arrow: bool = False) -> str:
    end = ' marker-end="url(#arrow)"' if arrow else ""
    return f'<path class="line" d="M{" L".join(f"{x:g} {y:g}" for x, y in points)}"{end}/>'


def picture(width: int, height: int, title: str, parts: list[str]) -> str:
    marker = (
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path class="line" d="M1 1 L7 4 L1 7"/></marker></defs>'
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">'
    return "\n".join(
        [head, f"<title>{title}</title>", f"<style>{STYLE}</style>", marker, *parts, "</svg>", ""]
    )


def sharing() -> str:
    """Three branches on a prompt of four pages: a cache for each beside one tree."""
    parts = [
        text(8, 20, "a cache for each branch", "bold"),
        text(8, 38, "18 pages held, 18 read a step", "small"),
    ]
    for row, kind in enumerate("abc"):
        y = 54 + 40 * row
        parts += [page(8 + 40 * i, y, 6 * row + i, "shared") for i in range(4)]
        parts += [page(8 + 40 * i, y, 6 * row + i, kind) for i in (4, 5)]
    x = 330
    parts += [text(x, 20, "one tree", "bold"), text(x, 38, "10 pages held, 10 read a step", "small")]
    parts += [page(x + 40 * i, 94, i, "shared") for i in range(4)]
    for row, kind in enumerate("abc"):
        y = 54 + 40 * row
        parts += [line((x + 158, 106), (x + 172, y + 12), (x + 186, y + 12))]
        parts += [page(x + 188 + 40 * i, y, 4 + 2 * row + i, kind) for i in range(2)]
    parts += [text(x, 142, "prompt", "small"), text(x + 130, 184, "what each branch added", "small")]
    return picture(
        606, 186, "Three branches on a prompt of four pages, with a cache each and as one tree", parts
    )


def merging() -> str:
    """One query over a path of two parts: each part's state alone, then the merge."""
    parts = [text(8, 24, "query"), text(8, 40, "of branch b", "small"), box(96, 12, 34, 26, "b")]
    parts += [text(113, 29, "q", "middle mono")]
    for y, kind, name, pages, state in (
        (74, "shared", "prompt, for all branches at once", 5, "(o₁, lse₁)"),
        (150, "b", "tail of branch b", 2, "(o₂, lse₂)"),
    ):
        parts += [text(190, y - 6, name, "small")]
        parts += [box(190 + 34 * i, y, 30, 26, kind) for i in range(pages)]
        parts += [line((113, 38), (113, y + 13), (184, y + 13), arrow=True)]
        parts += [
            line((194 + 34 * pages, y + 13), (396, y + 13), arrow=True),
            text(402, y + 18, state, "mono"),
        ]
    parts += [
        line((486, 87), (520, 87), (520, 118), arrow=True),
        line((486, 163), (520, 163), (520, 134), arrow=True),
    ]
    parts += [box(486, 118, 68, 16, "none"), text(520, 130, "merge", "middle small")]
    parts += [line((554, 126), (576, 126), arrow=True), text(582, 131, "(o, lse)", "mono")]
    return picture(650, 192, "A query reads two parts of its path apart; their states are merged", parts)


def planning() -> str:
    """Block tables of four branches, and the segments that a plan makes of them."""
    tables = ([0, 1, 2, 3, 6], [0, 1, 2, 3, 7], [0, 1, 2, 4, 8], [0, 1, 5])
    kinds = {0: "shared", 1: "shared", 2: "c", 3: "a"}  # pages of one branch have no colour
    parts = [
        text(8, 20, "block tables", "bold"),
        text(8, 38, "a row a branch, a column a page of its path", "small"),
    ]
    for row, table in enumerate(tables):
        y = 54 + 34 * row
        parts += [text(8, y + 17, f"q{row}", "mono")]
        parts += [page(40 + 40 * i, y, number, kinds.get(number, "none")) for i, number in enumerate(table)]
    x = 330
    parts += [
        text(x, 20, "segments", "bold"),
        text(x, 38, "pages that are the same for a run of queries", "small"),
    ]

    def segment(column: int, first: int, end: int, count: int, kind: str) -> str:
        left, top, width, height = x + 40 * column, 54 + 34 * first, 40 * count - 4, 34 * (end - first) - 10
        word = f"{count * (end - first)} → {count}" if end - first > 1 else ""
        return box(left, top, width, height, kind) + text(
            left + width / 2, top + height / 2 + 4, word, "middle small"
        )

    parts += [segment(0, 0, 4, 2, "shared"), segment(2, 0, 3, 1, "c"), segment(3, 0, 2, 1, "a")]
    parts += [
        segment(column, row, row + 1, 1, "none") for column, row in ((4, 0), (4, 1), (3, 2), (4, 2), (2, 3))
    ]
    return picture(606, 196, "Block tables of four branches, and the segments of their plan", parts)


FIGURES = {"sharing": sharing, "merging": merging, "planning": planning}


def main(folder: Path = FOLDER) -> None:
    for name, draw in FIGURES.items():
        (folder / f"{name}.svg").write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
