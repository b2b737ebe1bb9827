"""The subcommands, and errors as one line on stderr."""

from __future__ import annotations

import sys

import typer

from ..core.visible import one_line
from ..errors import (
    EngineError,
    JournalError,
    ModelLoadError,
    OutOfPages,
    UnsupportedByEngine,
    UnsupportedModel,
)
from ..tasks import TaskFileError
from .bench import bench
from .compare import compare
from .errors import CommandError, UsageError
from .info import info
from .options import strategies_help
from .plan_budget import plan_budget
from .search import search
from .strategies import strategies

app = typer.Typer(
    name="tts-decode",
    help="Search a language model's continuations on one shared KV tree.\n\n"
    'Start with [bold]tts-decode search "What is 3 + 4?"[/bold] or, for a table of strategies on small '
    "problems, [bold]tts-decode compare[/bold].",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command(epilog=strategies_help())(search)
app.command(epilog=strategies_help())(compare)
app.command()(strategies)
app.command()(plan_budget)
app.command()(info)
app.add_typer(bench, name="bench")


_FAILURES = (
    CommandError,
    EngineError,
    JournalError,
    ModelLoadError,
    OutOfPages,
    TaskFileError,
    UnsupportedByEngine,
    UnsupportedModel,
)


def run(arguments: list[str]) -> int:
    """Runs the command on `arguments` and returns its exit code."""
    try:
        return int(app(arguments, prog_name="tts-decode", standalone_mode=False) or 0)
    except typer.TyperException as error:
        return _fail(f"{error.format_message()} (see: tts-decode --help)", 2)
    except UsageError as error:
        return _fail(f"{error} (see: tts-decode --help)", 2)
    except _FAILURES as error:
        return _fail(str(error), 1)
    except typer.Abort:
        return _fail("interrupted", 130)


def _fail(message: str, code: int) -> int:
    print(f"tts-decode: {one_line(message)}", file=sys.stderr)
    return code
