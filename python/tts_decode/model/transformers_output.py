"""What transformers says while it loads: its progress bars silenced, its errors in a line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from transformers.utils import logging


def first_line(cause: BaseException) -> str:
    """The type and the first line of an exception's message, for a message of our own."""
    lines = str(cause).strip().splitlines()
    if not lines:
        return type(cause).__name__
    printable = "".join(char if char.isprintable() else repr(char)[1:-1] for char in lines[0])
    return f"{type(cause).__name__}: {printable}"


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences the progress bars of transformers: stages are reported through `on_progress`."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
