"""Which errors are the user's, and are told in one line instead of a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import TTSError


class UsageError(TTSError):
    """An argument of the command is wrong; exit code 2."""


class CommandError(TTSError):
    """The command was right but cannot be carried out; exit code 1."""


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turns ValueError into UsageError: for calls whose arguments are the user's own. Subtypes go through."""
    try:
        yield
    except ValueError as error:
        if type(error) is not ValueError:
            raise
        raise UsageError(str(error)) from error
