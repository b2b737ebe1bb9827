"""Reads ratings that a model wrote as text."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def rating(text: str, top: float = 100.0) -> float | None:
    """Returns the last number of a text that lies in 0..top, as a share of `top`; None if there is none.

    "I rate this 70 out of 100." with `top` 100 gives 1.0: ask for the number alone, or last.
    """
    if not top > 0:
        raise ValueError(f"top: got {top}, expected a positive number")
    found = [float(number) for number in _NUMBER.findall(text)]
    inside = [number / top for number in found if 0 <= number <= top]
    return inside[-1] if inside else None
