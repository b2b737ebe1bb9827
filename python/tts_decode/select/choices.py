"""Reads choices that a model wrote as text."""

from __future__ import annotations

import re
from collections.abc import Sequence


def last_choice(text: str, choices: Sequence[str]) -> str | None:
    """Returns the last of `choices` that occurs in a text as a separate word; None if none does.

    Words of several letters are found in any case, single letters only as they are: "a" is no choice "A".
    """
    found: list[tuple[int, str]] = []
    for choice in choices:
        flags = re.IGNORECASE if len(choice) > 1 else 0
        found += [(m.start(), choice) for m in re.finditer(rf"(?<!\w){re.escape(choice)}(?!\w)", text, flags)]
    return max(found)[1] if found else None
