"""Options of problems and of the judging of answers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ..tasks import FORMATS
from . import completion
from .errors import UsageError

# Options in their group of the help.
_problem_option = partial(typer.Option, rich_help_panel="Problems")

Tasks = Annotated[
    Path | None,
    _problem_option(
        "--tasks",
        metavar="FILE",
        help='Problems: a .jsonl file, {"prompt": "...", "answer": "..."} per line; or .json, '
        ".csv, .parquet; or OWNER/NAME of a data set on the hub.",
    ),
]
TaskFormat = Annotated[
    str | None,
    _problem_option(
        "--format",
        metavar="FORMAT",
        help=f"Format of --tasks: {', '.join(FORMATS)}. Default: by the hub's name, else plain.",
        show_default=False,
        autocompletion=completion.task_formats,
    ),
]
Fields = Annotated[
    list[str],
    _problem_option(
        "--field",
        metavar="PART=FIELD",
        help="Field of --tasks for a part of a problem: prompt=problem,answer=solution; may be repeated.",
    ),
]
Split = Annotated[
    str | None,
    _problem_option(
        metavar="NAME", help="Split of a hub data set. Default: the usual one.", show_default=False
    ),
]
Verifier = Annotated[
    str | None,
    _problem_option(
        metavar="FILE.py:NAME",
        help="Function that judges answers, instead of the task's own check: it takes the text, or the text "
        "and the expected answer, and returns a number from 0 to 1.",
        show_default=False,
    ),
]
UnsafeTools = Annotated[
    bool,
    _problem_option(
        "--unsafe-tools",
        help="If the system has no sandbox, run the model's programs with all your rights.",
    ),
]


def parse_fields(pairs: Sequence[str]) -> dict[str, str]:
    """Parses --field: PART=FIELD, several separated by commas."""
    fields = {}
    for pair in (part for given in pairs for part in given.split(",")):
        part, equals, name = pair.partition("=")
        if not equals or not name:
            raise UsageError(f"--field: got {pair!r}, expected PART=FIELD, such as prompt=problem")
        fields[part.strip()] = name.strip()
    return fields
