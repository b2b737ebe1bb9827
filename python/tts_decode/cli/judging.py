"""Reads the problems of --tasks, chooses their judge, and reports what could not be judged."""

from __future__ import annotations

import inspect
import math
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from ..grading import unjudged
from ..tasks import Task, TaskFileError, read_tasks
from .errors import UsageError
from .functions import called, load_function


def read_problems(
    source: Path,
    *,
    format: str | None,
    fields: dict[str, str],
    split: str | None,
    seed: int,
    unsafe_tools: bool,
) -> list[Task]:
    """Reads --tasks and its options. Errors begin with the option: UsageError, and those of `read_tasks`."""
    try:
        return read_tasks(
            source, format=format, fields=fields, split=split, seed=seed, unsafe_tools=unsafe_tools
        )
    except TaskFileError:
        raise
    except ValueError as error:
        raise UsageError(f"--{error}") from error


def refuse_task_options(**given: object) -> None:
    """Raises UsageError for options of --tasks without --tasks."""
    for name, value in given.items():
        if value:
            raise UsageError(f"--{name}: got {value!r} without --tasks, of which it says something")


def judged_by(verifier: str | None, tasks: list[Task]) -> list[Task]:
    """Returns the tasks with the function of --verifier instead of their own check.

    It gets the text, and the expected answer if it takes a second argument; it is called once per text.
    """
    if verifier is None:
        return tasks
    try:
        function = load_function(verifier, "--verifier", "text", "expected")
        with_answer = True
    except UsageError:
        function, with_answer = load_function(verifier, "--verifier", "text"), False
    if inspect.iscoroutinefunction(function):
        raise UsageError(f"--verifier: got {verifier}, an async function, expected one that returns a number")

    def under(task: Task) -> Task:
        @lru_cache(maxsize=1024)
        def verify(text: str) -> float:
            value = called(verifier, function, *((text, task.answer) if with_answer else (text,)))
            try:
                score = float(value)
            except (TypeError, ValueError):
                score = math.nan
            if not 0 <= score <= 1:
                raise UsageError(
                    f"--verifier: got {value!r:.80} of {verifier}, expected a number from 0 to 1"
                )
            return score

        return replace(task, verify=verify, waits=True)

    return [under(task) for task in tasks]


def unjudged_note() -> str | None:
    """Returns a note about answers that have no verdict because of time or memory limits, or None."""
    counts = unjudged()
    if not counts:
        return None
    reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(counts.items()))
    return f"comparisons of answers that a limit ended, and that count as not equal: {reasons}"
