"""Makes dataclasses from JSON values, and checks every value against the annotation of its field."""

from __future__ import annotations

import math
import types
from collections.abc import Collection
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

MAY_LACK = {"may lack": True}
"""Metadata of a field that older files lack: it then takes its default."""

_INTEGERS = range(-(1 << 63), 1 << 63)
_NAMES = {str: "a text", bool: "true or false", int: "an integer of 64 bits", float: "a finite number"}


def read_as(kind: Any, value: Any, where: str, *, untold: Collection[str] = ()) -> Any:
    """Converts `value` to a `kind`: a dataclass, text, number, bool, Literal, or a container of these.

    Containers are an optional, a tuple (from a list) and a dict.
    where: the value's name; messages append the names of its parts to it.
    untold: names of fields in which None means a number that is NaN.

    Raises ValueError, which says where and what was expected, for anything else, and for a missing or extra
    field (except those of `MAY_LACK`).
    """
    return _read(kind, value, where, untold, False)


def _read(kind: Any, value: Any, where: str, untold: Collection[str], may_be_nan: bool) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        (other,) = (option for option in inner if option is not types.NoneType)
        return None if value is None else _read(other, value, where, untold, may_be_nan)
    if origin is Literal:
        return _expect(value in inner, value, where, f"one of {', '.join(map(str, inner))}")
    if origin is tuple:
        _expect(isinstance(value, list), value, where, "a list")
        return tuple(_read(inner[0], v, f"{where}[{i}]", untold, may_be_nan) for i, v in enumerate(value))
    if origin is dict:
        _expect(isinstance(value, dict), value, where, "an object")
        return {k: _read(inner[1], v, f"{where}[{k!r:.40}]", untold, may_be_nan) for k, v in value.items()}
    if is_dataclass(kind):
        return _dataclass(kind, value, where, untold)
    if kind is float:
        if value is None and may_be_nan:
            return math.nan
        number = type(value) in (int, float) and math.isfinite(value)
        return float(_expect(number, value, where, _NAMES[float]))
    fits = type(value) is kind and (kind is not int or value in _INTEGERS)
    return _expect(fits, value, where, _NAMES[kind])


def _dataclass(kind: Any, value: Any, where: str, untold: Collection[str]) -> Any:
    _expect(isinstance(value, dict), value, where, "an object")
    names = {field.name for field in fields(kind)}
    needed = {field.name for field in fields(kind) if not field.metadata.get("may lack")}
    for name in [*(needed - value.keys()), *(value.keys() - names)]:
        raise ValueError(f"{where}: {'lacks' if name in names else 'has an unknown'} field {name!r:.80}")
    hints = _hints(kind)
    return kind(
        **{n: _read(hints[n], v, f"{where}.{n}", untold, may_be_nan=n in untold) for n, v in value.items()}
    )


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _expect(fits: bool, value: Any, where: str, expected: str) -> Any:
    if not fits:
        raise ValueError(f"{where}: got {value!r:.80}, expected {expected}")
    return value
