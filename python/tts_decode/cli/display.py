"""What the user sees: `Screen` for all that is printed, and one line on stderr that is redrawn meanwhile."""

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

if TYPE_CHECKING:  # it imports torch, without which `doctor` has something to tell
    from ..core.stats import DecoderStats

_MIB = 1 << 20
_NOTE_COLUMNS = 80


class Screen(Console):
    """Where everything is printed. Texts are shown as they are: none is markup, and what a terminal would
    obey is escaped (`visible`). Styles come from `Text` objects and styles of tables.

    The cursor stays where it can be seen: a process that is killed could not bring it back.
    """

    def __init__(self, file: IO[str] | None = None, **options: Any) -> None:
        super().__init__(file=file, markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        # Escaped here already, so that columns are as wide as what is shown.
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else visible(text), style, control)

    def note(self, text: str) -> None:
        """Prose beside a table: lines of 80 columns at most, fewer where the terminal has fewer."""
        self.print(text, width=min(self.width, _NOTE_COLUMNS))

    def show_cursor(self, show: bool = True) -> bool:
        return False


def print_json(value: Any) -> None:
    """In ASCII without control characters; numbers that JSON does not have are null."""
    print(json.dumps(finite(value), indent=2, allow_nan=False).replace("\x7f", "\\u007f"))


class Display:
    """`with Display() as display`: `stage` says what begins, `update` how it goes.

    On a terminal both redraw one line, which disappears at the end. Elsewhere stages are printed and updates
    are not, so that a log stays short.
    """

    def __init__(self, console: Console | None = None) -> None:
        # The stream itself, not whatever sys.stderr is later: the loader redirects that for a while.
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
            shown = one_line(text)[: self._console.width - 3]  # 2 columns are the spinner's
            self._spinner.update(text=Text(shown))


class Rate:
    """Tokens per second over the last few seconds, for a live figure that follows what happens now."""

    def __init__(self, window: float = 3.0) -> None:
        self._window = window
        self._samples: list[tuple[float, int]] = []

    def __call__(self, total: int) -> float:
        """The rate, given the total so far."""
        now = time.monotonic()
        self._samples.append((now, total))
        while now - self._samples[0][0] > self._window and len(self._samples) > 2:
            self._samples.pop(0)
        (begin, first), (end, last) = self._samples[0], self._samples[-1]
        return (last - first) / (end - begin) if end > begin else 0.0


def mib(count: float) -> str:
    """Bytes as MiB with a sensible number of digits."""
    value = count / _MIB
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def kv_held(stats: DecoderStats) -> str:
    """KV in the pool and, if there is any, beside it."""
    beside = f" + {mib(stats.offloaded_bytes)} offloaded" if stats.offloaded_bytes else ""
    return f"{mib(stats.resident_bytes)} MiB{beside}"


def short(value: float) -> str:
    """A figure with three digits, or all in front of the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
