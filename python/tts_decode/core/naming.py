"""Rewords errors about inner arguments so that they name what the caller gave."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

_INNER = re.compile(r"(prompt|text|tokens)(\[\d+\])?:? ")  # how errors about a prompt or a text begin


@contextmanager
def named(argument: str) -> Iterator[None]:
    """Turns inner errors about a prompt or a text into errors of the same type about `argument`."""
    try:
        yield
    except (TypeError, ValueError) as error:
        inner = _INNER.match(text := str(error))
        if inner is None:
            raise
        raise type(error)(f"{argument}: {text[inner.end() :]}") from error


def renamed_in_ranges(text: str, argument: str, name: str) -> str:
    """Replaces `argument` by `name` in an error's ranges, as in `expected a number, 0 < argument <= 1`."""
    return re.sub(rf"(?<=[<=] ){re.escape(argument)}(?= <)", lambda _: name, text)
