"""A problem, and what is wrong with a file of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..errors import TTSError


class TaskFileError(TTSError, ValueError):
    """A task file cannot be used; the message names the file, the line and what is wrong."""


@dataclass(frozen=True)
class Task:
    """One problem.

    Attributes:
        prompt: the user's message.
        answer: the expected answer, None if unknown.
        verify: maps a generated text to a score in [0, 1], 1 for correct, from any thread; None if nothing
            can be checked.
        waits: whether it may take long, as a test that runs a program does.
    """

    name: str
    prompt: str
    answer: str | None = None
    verify: Callable[[str], float] | None = None
    waits: bool = False
