"""Reads problems from files and from the hub."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from ..extras import installed, require
from ..grading import needs_mathematics
from .formats import FORMATS, HUB_FORMATS, Options
from .rows import file_rows, hub_rows
from .task import Task, TaskFileError

_HUB = re.compile(r"([\w.-]+/[\w.-]+)(?::([\w.-]+))?")
_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


def read_tasks(
    source: str | os.PathLike[str],
    *,
    format: str | None = None,
    fields: Mapping[str, str] | None = None,
    split: str | None = None,
    seed: int = 0,
    unsafe_tools: bool = False,
) -> list[Task]:
    """Reads a file, or a data set from the hub if the package `datasets` is installed.

    Args:
        source: a .jsonl, .json, .csv or .parquet file, or `OWNER/NAME` or `OWNER/NAME:CONFIG` on the hub.
            Text is UTF-8, with or without a byte order mark; only a newline ends a line of JSONL.
        format: of `FORMATS`. Default: by the hub's name, else "plain": "prompt" and optionally "answer" and
            "name", texts or numbers, and no other field.
        fields: the set's names for parts of a task, such as {"prompt": "problem"}; other fields are then
            ignored.
        split: of a data set on the hub. Default: the split on which results are published.
        seed: of the order of choices (gpqa).
        unsafe_tools: run programs without the sandbox (humaneval).

    A text is correct if its final answer means the same as the expected one (`tts_decode.grading`); a
    program, if the tests pass.

    Raises TaskFileError, with the line number; MissingExtraError if an expected answer is mathematics and
    math-verify is not installed, or a file reader is missing; SandboxError for programs without a sandbox;
    ValueError for an unknown format or field.
    """
    path, hub = Path(source), _HUB.fullmatch(os.fspath(source))
    on_hub = hub is not None and not path.exists() and path.suffix.lower() not in _SUFFIXES
    told = HUB_FORMATS.get(hub[1].lower()) if hub is not None and on_hub else None
    name = format or told or "plain"
    if name not in FORMATS:
        raise ValueError(f"format: got {name!r}, expected one of {', '.join(FORMATS)}")
    chosen = FORMATS[name]
    for part in fields or {}:
        if part not in chosen.fields:
            raise ValueError(
                f"field: got {part!r}, expected one of {', '.join(chosen.fields)} of the format {name}"
            )
    if fields:
        chosen = chosen.renamed(fields)
    if hub is not None and on_hub:
        rows = hub_rows(hub[1], hub[2] or chosen.config, split or chosen.split)
        if not rows:
            raise TaskFileError(f"data set {hub[1]}: holds no task")
    else:
        rows = file_rows(path)
    for part, field in (fields or {}).items():
        if not any(field in row.fields for row in rows):
            known = ", ".join(dict.fromkeys(name for row in rows for name in row.fields))
            raise ValueError(f"field: got {part}={field}, which no row has; they have {known:.300}")
    options = Options(seed, unsafe_tools)
    tasks = [chosen.task(row, options) for row in rows]
    answers = [task.answer for task in tasks if task.answer is not None]
    if not installed("math_verify") and any(map(needs_mathematics, answers)):
        require("math_verify")
    return tasks
