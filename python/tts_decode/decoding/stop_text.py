"""Cuts a text at a stop string."""

from __future__ import annotations

from collections.abc import Sequence


def cut_at_stop(text: str, last: int, stops: Sequence[str], *, include: bool) -> tuple[str, str | None]:
    """Returns the text up to its stop string, or to the end of that string, and the string.

    A stop string ends in the last `last` characters, which belong to the last token. If there are several,
    the one that ends first counts, then the longest. Without one the text stays whole.
    """
    found: tuple[int, int, str] | None = None
    for stop in stops:
        at = text.find(stop, max(0, len(text) - last - len(stop) + 1))
        if at >= 0 and (found is None or (at + len(stop), at) < found[:2]):
            found = at + len(stop), at, stop
    if found is None:
        return text, None
    end, begin, stop = found
    return text[: end if include else begin], stop
