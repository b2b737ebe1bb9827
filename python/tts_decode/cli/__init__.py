"""The `tts-decode` command: search one prompt, compare strategies, show what this machine offers."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import traceback
from types import TracebackType

from ..core.visible import visible
from ..extras import require
from .shell import VARIABLE
from .signals import Signals
from .versions import version_text


def main() -> None:
    """Runs the command.

    Exit code 2 for a wrong invocation, 1 for a failure, 130 after SIGINT, 143 after SIGTERM.
    """
    # How often libgomp's threads poll for work before they sleep: its own setting for more threads than
    # cores. By default they poll for milliseconds, and alongside a busy process a step took 2 to 8 times as
    # long (2 cores); without one, this setting made no difference.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    signals = Signals()
    signals.install()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # the terminal's encoding must not lose a result
    sys.excepthook = _report
    on_terminal = sys.stderr.isatty() and VARIABLE not in os.environ
    if on_terminal:  # importing torch and transformers takes seconds
        print("starting ...", end="\r", file=sys.stderr, flush=True)

    def imported() -> None:
        if on_terminal:
            print("\x1b[2K", end="\r", file=sys.stderr, flush=True)
        signals.started()

    try:
        require("typer")
        require("rich")
    except ImportError as error:
        from ..errors import MissingExtraError  # imports torch, as `require` did for this error

        if not isinstance(error, MissingExtraError):
            raise
        if sys.argv[1:] == ["--version"]:
            print(version_text())
            return
        sys.exit(f"tts-decode: {error}")
    try:
        from .app import run

        code = run(sys.argv[1:], imported)
    except BaseException:
        if signals.caught is None:
            raise
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        signals.end()
    sys.exit(code)


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Prints the traceback of an unexpected error, whose message may quote foreign text."""
    print(visible("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)
