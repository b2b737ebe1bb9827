"""A table of figures, for the output of a bench and for a page of the documentation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

from rich.console import Console
from rich.progress import track
from rich.table import Table as RichTable

T = TypeVar("T")


class Table(NamedTuple):
    """heads: of the columns; the first is of the rows' names. rows: as many cells each. Columns of numbers
    are aligned to the right."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        rule = "".join("|---:" if right else "|---" for right in self._right())
        return "\n".join([line(self.heads), f"{rule}|", *map(line, self.rows)])

    def show(self, title: str) -> None:
        printed = RichTable(title=title)
        for head, right in zip(self.heads, self._right(), strict=True):
            printed.add_column(head, justify="right" if right else "left")
        for row in self.rows:
            printed.add_row(*row)
        Console().print(printed)

    def _right(self) -> list[bool]:
        columns = [[row[i] for row in self.rows] for i in range(len(self.heads))]
        return [i > 0 and all(c == "" or c[0].isdigit() for c in cells) for i, cells in enumerate(columns)]


def line(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def tracked(items: Sequence[T], name: str) -> Iterable[T]:
    """The items, with a bar of those that are done on the terminal."""
    return track(items, name, console=Console(stderr=True))
