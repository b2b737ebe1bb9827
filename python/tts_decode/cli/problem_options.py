"""Options of problems and of what judges the answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ..tasks import FORMATS
from . import completion
from .errors import UsageError

_PROBLEMS = "Problems"

Tasks = Annotated[
    Path | None,
    typer.Option(
        "--tasks",
        metavar="FILE",
        help='Problems: a .jsonl file, {"prompt": "...", "answer": "..."} a line; or .json, '
        ".csv, .parquet; or OWNER/NAME of a data set on the hub.",
        rich_help_panel=_PROBLEMS,
    ),
]
TaskFormat = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="FORMAT",
        help=f"Of --tasks: {', '.join(FORMATS)}. Default: what the hub's name says, else plain.",
        show_default=False,
        rich_help_panel=_PROBLEMS,
        autocompletion=completion.task_formats,
    ),
]
Fields = Annotated[
    list[str],
    typer.Option(
        "--field",
        metavar="PART=FIELD",
        help="What --tasks calls a part of a problem, as prompt=problem,answer=solution; may be repeated.",
        rich_help_panel=_PROBLEMS,
    ),
]
Split = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Split of a data set of the hub. Default: the usual one.",
        show_default=False,
        rich_help_panel=_PROBLEMS,
    ),
]
Verifier = Annotated[
    str | None,
    typer.Option(
        metavar="FILE.py:NAME",
        help="Judges answers instead of the task's own check: a function of the text, or of the text and the "
        "expected answer, to a number from 0 to 1.",
        show_default=False,
        rich_help_panel=_PROBLEMS,
    ),
]
UnsafeTools = Annotated[
    bool,
    typer.Option(
        "--unsafe-tools",
        help="Run programs that the model wrote with all your rights where the system has no sandbox "
        "for them.",
        rich_help_panel=_PROBLEMS,
    ),
]


def parse_fields(pairs: Sequence[str]) -> dict[str, str]:
    """Of --field: PART=FIELD, several with commas between."""
    fields = {}
    for pair in (part for given in pairs for part in given.split(",")):
        part, equals, name = pair.partition("=")
        if not equals or not name:
            raise UsageError(f"--field: got {pair!r}, expected PART=FIELD, such as prompt=problem")
        fields[part.strip()] = name.strip()
    return fields
