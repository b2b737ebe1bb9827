"""Answers that are words, and the texts that the algebra may see."""

from __future__ import annotations

import re
from functools import lru_cache

from .notation import CACHED

_FUNCTIONS = frozenset(
    {
        *("sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh"),
        *("log", "ln", "exp", "lim", "max", "min", "gcd", "lcm", "mod", "det"),
    }
)
_CONSTANTS = frozenset("ei")  # single letters that represent numbers
_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_GEOMETRY = re.compile(
    r"\\(?:angle|triangle|overrightarrow|overleftrightarrow|overline|vec|widehat)\s*\{?\s*[A-Z]"
)
_QUOTED = re.compile(r"^['\u2018](.*)['\u2019]$", re.DOTALL)
_LEADING = re.compile(r"^(?:an?|the)\s+(?=\w{3})|^(?:option|choice)\s+(?=[A-Z]$)", re.IGNORECASE)
_MARKS = re.compile(r"[.,;:?\"()]|(?<!\b[a-zA-Z])!")  # n! is not n, and f' is not f
# Dates, telephone numbers and leading zeros: not differences or quotients.
_NO_ARITHMETIC = re.compile(
    r"^\d{1,2}([-/])\d{1,2}\1\d{4}$|^\d{4}([-/])\d{1,2}\2\d{1,2}$|^\d{3}-(?:\d{3}-)?\d{4}$"
    r"|(?<![\d.])0\d+\s*[-/]|[-/]\s*0\d"
)
_COMMAND = re.compile(r"\\(?:begin|end)\{[a-z]+\*?\}|\\[a-zA-Z]+")


@lru_cache(maxsize=CACHED)
def is_words(text: str) -> bool:
    r"""Whether a normalised value is text rather than mathematics: `Blue`, `\text{no}`, a choice `B`."""
    inside = _TEXT.fullmatch(text)
    if inside:
        return not re.search(r"\d", inside[1])
    if _GEOMETRY.search(text) and "=" not in text:  # the algebra would read the angle ABC as a product
        return True
    bare = _TEXT.sub(r" \1 ", text)
    if re.search(r"[\\^_{}=<>+*/\d|]", bare):
        return "=" not in bare and bool(re.search(r"[^\W\d_]{4,}", _COMMAND.sub(" ", bare)))
    runs = re.findall(r"[^\W\d_]+", bare)
    if len(runs) == 1 and len(runs[0]) == 1:
        return runs[0] not in _CONSTANTS
    return not runs or any(len(run) > 1 and run not in _FUNCTIONS for run in runs)


@lru_cache(maxsize=CACHED)
def words(text: str) -> str:
    """Returns a key that is equal for texts with the same words.

    Case counts in words of one or two letters, which may be names.
    """
    text = _QUOTED.sub(r"\1", _TEXT.sub(r" \1 ", text).strip())
    text = _LEADING.sub("", " ".join(_MARKS.sub(" ", text).split()))
    return text.casefold() if len(text) > 2 or text.casefold() == "no" else text


def algebra_knows(first: str, second: str) -> bool:
    """Whether the algebra reads both as a person does.

    It takes `a` for `A`, `1 2` for a sum, `3:4` for less, `H2O` and `0x10` for products, a date for a
    difference.
    """
    a, b = _letters(first), _letters(second)
    if a is None or b is None:
        return False
    return a == b or set(map(str.casefold, a)) != set(map(str.casefold, b))


@lru_cache(maxsize=CACHED)
def _letters(text: str) -> frozenset[str] | None:
    """Returns the letters of a formula; None if the algebra reads its digits differently from a person."""
    bare = _COMMAND.sub(" ", text)
    if re.search(r"\d\s+\d|\d\s*:|\d_\{?\w", text) or re.search(r"[a-zA-Z]\d", bare):
        return None
    if _NO_ARITHMETIC.search(text.strip()):
        return None
    return frozenset(re.findall(r"[a-zA-Z]", bare))
