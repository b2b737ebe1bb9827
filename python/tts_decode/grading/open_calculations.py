r"""Calculations that a text leaves open: who repeats `3 + 4`, `2^3` or `\sqrt{49}` gives no answer."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from .notation import CACHED, normalised
from .units import measured
from .values import number, rounds_exact

_OPERAND = r"\s*(?:[$\d({\\]|\.\d)"
_EXPONENT = r"\s*\^\s*[{(]?\s*[+-]?\s*(?:\d|\\frac)"
_NAMES = r"log|ln|lg|exp|(?:arc)?(?:sin|cos|tan)h?|cot|sec|csc|gcd|lcm|max|min"
_KINDS = {
    kind: re.compile(pattern)
    for kind, pattern in {
        "sum": rf"[\d)}}]\s*(?:[+-]|\\pm){_OPERAND}",
        # 3.5 \times 10^4 is a number, and 3\cdot\pi and 3\cdot\sqrt{2} have no shorter form.
        "product": rf"[\d)}}]\s*(?:\*|\\times|\\cdot)(?!\s*10\s*\^|\s*\\(?:pi|sqrt)){_OPERAND}",
        # 10^6 is a number. Roots are powers: 3^{1/2} and \sqrt{3} have the same form.
        "power": (
            rf"(?<![\d.])(?!10\s*\^)\d[\d.]*{_EXPONENT}|\d\s*[)}}]+{_EXPONENT}|\d\s*(?:squared|cubed)\b"
            r"|\\sqrt|\bsqrt\b"
        ),
        "function": (
            rf"\\(?:{_NAMES}|[bp]?mod|binom|lfloor|lceil|sum|prod|int)(?![a-zA-Z])"
            rf"|\b(?:{_NAMES}|mod|floor|ceil|abs)\s*\(|\|\s*-|\d!\s*[-+*/\\]|\d\s*factorial\b"
        ),
    }.items()
}
_DIVISION = re.compile(r"\u00f7|\\div(?![a-zA-Z])")  # a sign that no number is written with
_FRACTION = re.compile(r"\d\s*/\s*\d|\\frac")  # open where the answer is whole
_UNIT = re.compile(r"\\(?:text|mathrm|mbox)\s*\{[^{}]*\}")
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_ASSIGNED = re.compile(r"^[a-zA-Z]\s*=")


class _Number(NamedTuple):
    """An expected number. kinds: of the calculations that it is written with."""

    whole: bool
    kinds: frozenset[str]


def left_open(text: str, expected: str) -> bool:
    r"""Whether a text holds a calculation that the expected answer, a number, is the result of.

    `2^3` is open for 8, and `12/4` for 3, but not `1/2` for 0.5 or `3i + 2` for `2 + 3i`: a calculation is
    open if the expected answer has none of its kind. An answer with variables, or without digits, leaves
    nothing open.
    """
    known = _expected_number(expected)
    if known is None:
        return False
    if _DIVISION.search(text):
        return True
    written = _UNIT.sub("u", normalised(text))  # the power of a unit is no calculation
    return bool(known.whole and _FRACTION.search(written)) or not _kinds(written) <= known.kinds


@lru_cache(maxsize=CACHED)
def _expected_number(expected: str) -> _Number | None:
    """Returns what matters of an expected number; None for words and for formulas with variables."""
    value, unit = measured(_ASSIGNED.sub("", normalised(expected)))
    letters = set(re.findall(r"[a-zA-Z]", _COMMAND.sub(" ", value)))
    if not re.search(r"\d|\\pi", value) or letters - {"i", "e"}:
        return None
    known = number(value)
    kinds = _kinds(value)
    if known is not None and rounds_exact(known):  # then `\sqrt{3}` is the exact form of 1.73205
        kinds |= {"power", "function"}
    whole = known is not None and unit != "%" and known == known.to_integral_value()
    return _Number(whole, kinds)


def _kinds(written: str) -> frozenset[str]:
    return frozenset(kind for kind, pattern in _KINDS.items() if pattern.search(written))
