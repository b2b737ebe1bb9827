"""Single Python values: each function returns the value, or says what is wrong with it."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def integer(name: str, value: Any, low: int = -(2**63), high: int = 2**63 - 1) -> int:
    """An int, or what counts as one (numpy's), of the range; no bool and no float."""
    if type(value) is not int:
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise TypeError(f"{name}: got {shown(value)}, expected an int")
        value = int(value)
    if not low <= value <= high:
        expected = f">= {low}" if high == 2**63 - 1 and value < low else f"{low} <= {name} <= {high}"
        raise ValueError(f"{name}: got {shown(value)}, expected {expected}")
    return int(value)


def real(name: str, value: Any) -> float:
    """A float, or what counts as one; no bool. NaN and infinity pass: the range is the signature's."""
    if type(value) is float:
        return value
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: got {shown(value)}, expected a number")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name}: got {shown(value)}, expected a number that a float can hold") from None


def flag(name: str, value: Any) -> bool:
    if value is True or value is False:
        return bool(value)
    raise TypeError(f"{name}: got {shown(value)}, expected True or False")


def choice(name: str, value: Any, choices: Sequence[str | None]) -> None:
    if not (value is None or isinstance(value, str)):
        raise TypeError(f"{name}: got {shown(value)}, expected one of {_listed(choices)}")
    if value not in choices:
        raise ValueError(f"{name}: got {shown(value)}, expected one of {_listed(choices)}")


def instance(name: str, value: Any, kind: type[T], remedy: str) -> T:
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        raise TypeError(f"{name}: got {type(value).__name__}, expected {article} {kind.__name__}; {remedy}")
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


def listed_dtypes(dtypes: Sequence[torch.dtype]) -> str:
    *others, last = map(str, dtypes)
    return f"{', '.join(others)} or {last}" if others else last


def _listed(choices: Sequence[str | None]) -> str:
    *others, last = map(repr, choices)
    return f"{', '.join(others)} or {last}" if others else last
