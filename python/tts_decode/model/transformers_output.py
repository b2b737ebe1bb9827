"""transformers' output while it loads: progress bars and warnings silenced, errors in one line."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from huggingface_hub.utils import logging as hub_logging
from transformers.utils import logging as transformers_logging


def first_line(cause: BaseException) -> str:
    """Returns the type and the first line of an exception's message, for a message of our own.

    If that ends in a colon, it is a heading, and the next line is included too.
    """
    lines = [line.strip() for line in str(cause).strip().splitlines() if line.strip()]
    if not lines:
        return type(cause).__name__
    told = " ".join(lines[: 2 if lines[0].endswith(":") else 1])
    printable = "".join(char if char.isprintable() else repr(char)[1:-1] for char in told)
    return f"{type(cause).__name__}: {printable}"


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences the progress bars of transformers: stages are reported through `on_progress`.

    The hub's warnings are silenced too: one for each of several attempts, before our own error.
    """
    shown = transformers_logging.is_progress_bar_enabled()
    level = hub_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    hub_logging.set_verbosity(max(level, logging.ERROR))
    try:
        yield
    finally:
        hub_logging.set_verbosity(level)
        if shown:
            transformers_logging.enable_progress_bar()
