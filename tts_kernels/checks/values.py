"""Checks single Python values: each function returns the value, or raises what is wrong with it."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, TypeGuard, TypeVar

import torch

T = TypeVar("T")


def is_integer(value: object) -> TypeGuard[int]:
    """Whether it is an int or an equivalent (numpy's); not bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_real(value: object) -> TypeGuard[float]:
    """Whether it is an int, a float or an equivalent (numpy's); not bool."""
    return isinstance(value, Real) and not isinstance(value, bool)


def any_integer(name: str, value: Any) -> int:
    """Returns an int of any size from an int or an equivalent (numpy's); refuses bool and float."""
    if not is_integer(value):
        raise TypeError(f"{name}: got {shown(value)}, expected an int")
    return int(value)


def integer(name: str, value: Any, low: int = -(2**63), high: int = 2**63 - 1) -> int:
    """Returns `any_integer` of a value within the range."""
    if type(value) is not int:
        value = any_integer(name, value)
    if not low <= value <= high:
        expected = f">= {low}" if high == 2**63 - 1 and value < low else f"{low} <= {name} <= {high}"
        raise ValueError(f"{name}: got {shown(value)}, expected {expected}")
    return int(value)


def real(name: str, value: Any) -> float:
    """Returns a float; refuses bool. NaN and infinity pass: the signature checks the range."""
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
    """Returns a finite float within the range; takes numpy's and one-element tensors too, no bool.

    low, high: inclusive bounds. above, below: exclusive bounds. what: what an error says was expected.
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


def a_type(value: Any) -> str:
    """Returns the name of a value's type with its article, for an error: `an int`."""
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def shown(value: Any) -> str:
    """Returns a short form for an error; of a tensor not its values, as it may have no memory."""
    if isinstance(value, torch.Tensor):
        return a_type(value)
    try:
        return reprlib.repr(value)
    except ValueError:  # Python refuses to print integers of thousands of digits
        return f"an {type(value).__name__} of too many digits"


def _bounds(name: str, low: float, high: float, above: float, below: float) -> str:
    """Returns a range as an error ends in it: " >= 0", or ", 0 < name <= 1"."""
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
