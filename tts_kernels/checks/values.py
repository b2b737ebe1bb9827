"""Single Python values: each function returns the value, or says what is wrong with it."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, TypeGuard, TypeVar

import torch

T = TypeVar("T")


def is_integer(value: object) -> TypeGuard[int]:
    """Whether it is an int, or what counts as one (numpy's); no bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_real(value: object) -> TypeGuard[float]:
    """Whether it is an int or a float, or what counts as one (numpy's); no bool."""
    return isinstance(value, Real) and not isinstance(value, bool)


def any_integer(name: str, value: Any) -> int:
    """An int of any size, or what counts as one (numpy's); no bool and no float."""
    if not is_integer(value):
        raise TypeError(f"{name}: got {shown(value)}, expected an int")
    return int(value)


def integer(name: str, value: Any, low: int = -(2**63), high: int = 2**63 - 1) -> int:
    """`any_integer`, of the range."""
    if type(value) is not int:
        value = any_integer(name, value)
    if not low <= value <= high:
        expected = f">= {low}" if high == 2**63 - 1 and value < low else f"{low} <= {name} <= {high}"
        raise ValueError(f"{name}: got {shown(value)}, expected {expected}")
    return int(value)


def real(name: str, value: Any) -> float:
    """A float, or what counts as one; no bool. NaN and infinity pass: the range is the signature's."""
    if type(value) is float:
        return value
    if not is_real(value):
        raise TypeError(f"{name}: got {shown(value)}, expected a number")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name}: got {shown(value)}, expected a number that a float can hold") from None


def number(
    name: str,
    value: Any,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    what: str = "a finite number",
) -> float:
    """A finite float, or what counts as one (numpy's, a tensor's only element), of the range; no bool.

    low, high: bounds that it may reach. above, below: those that it may not. what: what it is, in an error.
    """
    if isinstance(value, torch.Tensor) and value.dim() == 0 and value.dtype != torch.bool:
        value = value.item()
    try:
        found = real(name, value)
        if math.isfinite(found) and low <= found <= high and above < found < below:
            return found
        kind: type[Exception] = ValueError
    except (TypeError, ValueError) as error:
        kind = type(error)
    raise kind(f"{name}: got {shown(value)}, expected {what}{_bounds(name, low, high, above, below)}")


def flag(name: str, value: Any) -> bool:
    if value is True or value is False:
        return bool(value)
    raise TypeError(f"{name}: got {shown(value)}, expected True or False")


def choice(name: str, value: Any, choices: Sequence[str | None]) -> None:
    if not (value is None or isinstance(value, str)):
        raise TypeError(f"{name}: got {shown(value)}, expected one of {_listed(choices)}")
    if value not in choices:
        raise ValueError(f"{name}: got {shown(value)}, expected one of {_listed(choices)}")


def instance(name: str, value: Any, kind: type[T], remedy: str = "") -> T:
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        advice = f"; {remedy}" if remedy else ""
        raise TypeError(f"{name}: got {type(value).__name__}, expected {article} {kind.__name__}{advice}")
    return value


def dtype_of(name: str, value: Any, dtypes: Sequence[torch.dtype]) -> torch.dtype:
    if value not in dtypes or not isinstance(value, torch.dtype):
        raise TypeError(f"{name}: got {shown(value)}, expected {listed_dtypes(dtypes)}")
    return value


def shown(value: Any) -> str:
    """For an error: short, and of a tensor not what it holds, which it may have no memory for."""
    if isinstance(value, torch.Tensor):
        return f"a {type(value).__name__}"
    try:
        return reprlib.repr(value)
    except ValueError:  # Python writes no integers of thousands of digits
        return f"an {type(value).__name__} of too many digits"


def _bounds(name: str, low: float, high: float, above: float, below: float) -> str:
    """A range as the end of an error: " >= 0", or ", 0 < name <= 1"."""
    least = f"{low:g} <= " if low > -math.inf else f"{above:g} < " if above > -math.inf else ""
    most = f" <= {high:g}" if high < math.inf else f" < {below:g}" if below < math.inf else ""
    if least and not most:
        return f" >= {low:g}" if low > -math.inf else f" > {above:g}"
    return f", {least}{name}{most}" if least else most


def listed_dtypes(dtypes: Sequence[torch.dtype]) -> str:
    *others, last = map(str, dtypes)
    return f"{', '.join(others)} or {last}" if others else last


def _listed(choices: Sequence[str | None]) -> str:
    *others, last = map(repr, choices)
    return f"{', '.join(others)} or {last}" if others else last
