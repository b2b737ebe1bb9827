"""A problem, and the error about a file of problems."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..errors import TTSError


class TaskFileError(TTSError, ValueError):
    """A task file cannot be used; the message names the file, the line and the reason."""


@dataclass(frozen=True)
class Task:
    """One problem.

    Attributes:
        prompt: the user's message.
        answer: the expected answer, None if unknown.
        verify: maps a generated text to a score in [0, 1], 1 for correct, from any thread; None if nothing
            can be checked.
        waits: whether verification may take long, as running a program does.
    """

    name: str
    prompt: str
    answer: str | None = None
    verify: Callable[[str], float] | None = None
    waits: bool = False
