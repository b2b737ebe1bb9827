"""Single values: numbers, measures, words; the rest is left to the algebra."""

from __future__ import annotations

import re
from decimal import Decimal
from functools import lru_cache

from ..select import plain_number
from .mathematics import MATHEMATICS
from .notation import CACHED, spelling
from .units import measured, measured_in
from .words import algebra_knows, is_words, words

_CLOSE = Decimal("1e-9")  # relative, for two numbers that are not both integers: they may come from float64
_DIGITS = 6  # significant digits of a decimal that may stand for an exact number
_LONGEST = 300  # most digits of a number passed to the algebra
_COUNTED = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"),
    *("twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
_NAMED = re.compile(r"^([a-zA-Z][a-zA-Z ]*?)\s*=(?!.*=)")  # x = 5


def same_value(first: str, second: str) -> bool:
    """Whether two normalised values are equal.

    Raises UnjudgedError, and MissingExtraError without math-verify.
    """
    if spelling(first) == spelling(second):
        return True
    names = [_NAMED.match(text) for text in (first, second)]
    if names[0] and names[1] and names[0][1] != names[1][1] and not re.search(r"\d|=.*[a-zA-Z]", names[0][1]):
        return False
    a, b = measured(first), measured(second)
    if not a.unit and b.unit:
        a = measured_in(first, b.unit) or a
    if not b.unit and a.unit:
        b = measured_in(second, a.unit) or b
    if a.unit and b.unit and a.unit != b.unit:
        return False
    if spelling(a.value) == spelling(b.value):
        return True
    x, y = number(a.value), number(b.value)
    scales = [(1, 1)]
    if "%" in (a.unit, b.unit) and a.unit != b.unit:
        scales.append((100, 1) if a.unit else (1, 100))
    if x is not None and y is not None:
        return close(x, y) or any(close(x / over, y / under) for over, under in scales[1:])
    if is_words(a.value) or is_words(b.value):
        return words(a.value) == words(b.value)
    formulas = [a.value if x is None else f"{x:f}", b.value if y is None else f"{y:f}"]
    if max(map(len, formulas)) > max(_LONGEST, len(a.value), len(b.value)) or not algebra_knows(*formulas):
        return False
    for decimal, (rounded, formula) in ((x, formulas), (y, formulas[::-1])):
        if decimal is not None and rounds_exact(decimal) and MATHEMATICS.rounds(rounded, formula):
            return True
    return any(
        MATHEMATICS.equal(_scaled(formulas[0], over), _scaled(formulas[1], under)) for over, under in scales
    )


@lru_cache(maxsize=CACHED)
def number(text: str) -> Decimal | None:
    """Returns a plain number, a number in a base, `1010_2`, or what follows the `=` of `x = 5`."""
    text = re.sub(r"(?<=\d) (?=\d{3}(?!\d))", "", _NAMED.sub("", text)).strip("{} ")
    if text.casefold() in _COUNTED:
        return Decimal(_COUNTED.index(text.casefold()))
    based = re.fullmatch(r"([0-9A-Fa-f]{1,64})_\{?(?:\\text\{)?(\d{1,2}|[a-zA-Z]{3,9})\}*", text)
    if based is None:
        return plain_number(text)
    try:
        base = int(based[2]) if based[2].isdecimal() else _COUNTED.index(based[2].casefold())
        return Decimal(int(based[1], base))
    except ValueError:  # invalid base or digit
        return None


def close(x: Decimal, y: Decimal) -> bool:
    """Whether two numbers are equal, up to float64 rounding if one is no integer."""
    if x == y:
        return True
    if x == x.to_integral_value() and y == y.to_integral_value():
        return False
    return abs(x - y) <= _CLOSE * max(abs(x), abs(y))


def rounds_exact(x: Decimal) -> bool:
    """Whether a number has a fraction and digits enough to stand for the exact number that it rounds."""
    digits, exponent = x.as_tuple().digits, x.as_tuple().exponent
    return isinstance(exponent, int) and exponent < 0 and len(digits) >= _DIGITS


def _scaled(formula: str, by: int) -> str:
    return formula if by == 1 else f"\\frac{{{formula}}}{{{by}}}"
