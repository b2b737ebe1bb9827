"""Terminal output: `Screen` prints everything, `Display` redraws a progress line on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.live import Live
from rich.segment import Segment
from rich.spinner import Spinner
from rich.text import Text

from ..core.visible import one_line, visible
from ..records.strict_json import finite

if TYPE_CHECKING:  # it imports torch, and `doctor` must work without
    from ..core.stats import DecoderStats

_MIB = 1 << 20
_NOTE_COLUMNS = 80


class Screen(Console):
    """Prints everything. Texts are shown verbatim: none is markup, and terminal controls are escaped.

    `visible` does the escaping. Styles come from `Text` objects and table styles. The cursor is never hidden:
    a killed process could not restore it.
    """

    def __init__(self, file: IO[str] | None = None, **options: Any) -> None:
        super().__init__(file=file, markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        # Escaped here, so that columns fit the escaped text.
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else visible(text), style, control)

    def note(self, text: str) -> None:
        """Prints prose next to a table, in lines of at most 80 columns or the terminal's width."""
        self.print(text, width=min(self.width, _NOTE_COLUMNS))

    def show_cursor(self, show: bool = True) -> bool:
        return False


def print_json(value: Any) -> None:
    """Prints JSON in ASCII without control characters; numbers that JSON lacks are null."""
    print(json.dumps(finite(value), indent=2, allow_nan=False).replace("\x7f", "\\u007f"))


class Display:
    """`with Display() as display`: `stage` announces a stage, `update` reports its progress.

    On a terminal both redraw one line, which disappears at the end. Elsewhere stages are printed and updates
    are not, so that a log stays short.
    """

    def __init__(self, console: Console | None = None) -> None:
        # The current stream, not a later sys.stderr, which the loader redirects for a while.
        self._console = console or Screen(sys.stderr)
        self._spinner = Spinner("dots", Text(""))
        self._live = Live(self._spinner, console=self._console, transient=True, refresh_per_second=8)
        self._on_terminal = self._console.is_terminal

    def __enter__(self) -> Display:
        if self._on_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._on_terminal:
            self._live.stop()

    def stage(self, text: str) -> None:
        if self._on_terminal:
            self.update(text)
        else:
            self._console.print(one_line(text), soft_wrap=True)

    def update(self, text: str) -> None:
        if self._on_terminal:
            shown = one_line(text)[: self._console.width - 3]  # the spinner takes 2 columns
            self._spinner.update(text=Text(shown))


class Rate:
    """Tokens per second over the last few seconds, for a live display of the current rate."""

    def __init__(self, window: float = 3.0) -> None:
        self._window = window
        self._samples: list[tuple[float, int]] = []

    def __call__(self, total: int) -> float:
        """Returns the rate, given the total so far."""
        now = time.monotonic()
        self._samples.append((now, total))
        while now - self._samples[0][0] > self._window and len(self._samples) > 2:
            self._samples.pop(0)
        (begin, first), (end, last) = self._samples[0], self._samples[-1]
        return (last - first) / (end - begin) if end > begin else 0.0


def mib(count: float) -> str:
    """Returns bytes as MiB, with a sensible number of digits."""
    value = count / _MIB
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def kv_held(stats: DecoderStats) -> str:
    """Returns the KV in the pool and, if any, outside it."""
    beside = f" + {mib(stats.offloaded_bytes)} offloaded" if stats.offloaded_bytes else ""
    return f"{mib(stats.resident_bytes)} MiB{beside}"


def short(value: float) -> str:
    """Returns a number with three digits, or with all digits before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
