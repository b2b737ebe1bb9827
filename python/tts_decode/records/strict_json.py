"""Strict JSON by the standard, with checksums for our own files."""

from __future__ import annotations

import json
import math
import re
import zlib
from codecs import BOM_UTF8
from typing import Any

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_CHECKSUM = "crc32"
_LONGEST_INTEGER = 310  # digits and a sign; no float64 is longer


def loads(data: bytes) -> Any:
    """Returns the value of a JSON text in UTF-8, with or without a byte order mark.

    Raises:
        ValueError: it is not JSON, or readers would understand it differently: NaN and infinities, numbers
            beyond the range of float64, a duplicate key in an object, half a surrogate pair, or more nesting
            than the interpreter's stack holds. The message is the second half of a sentence about the text.
    """
    try:
        text = data.removeprefix(BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as cause:
        raise ValueError(f"is not UTF-8 text (byte {cause.start + 1})") from None
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_float=_float,
            parse_int=_integer,
        )
        _check_surrogates(text, value)
    except json.JSONDecodeError as cause:
        raise ValueError(f"is not JSON ({cause.msg} at column {cause.colno})") from None
    except RecursionError:
        raise ValueError("is nested too deeply to be read") from None
    return value


def dumps(value: Any) -> str:
    """Returns the value as compact JSON in ASCII.

    NaN and infinities become the strings "nan", "inf" and "-inf", which `float` reads. Raises ValueError for
    what `loads` would not read: half a surrogate pair.
    """
    try:
        text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    except ValueError:
        text = json.dumps(_replaced(value, repr), separators=(",", ":"), allow_nan=False)
    _check_surrogates(text, value)
    return text


def finite(value: Any) -> Any:
    """Returns the value with None for each number that JSON lacks, and lists for tuples."""
    return _replaced(value, lambda number: None)


def seal(record: dict[str, Any], before: int = 0) -> tuple[str, int]:
    """Returns the record as JSON with a last field "crc32", and that number.

    before: the number of the previous record in a file, so that each one covers all earlier ones. The
    checksum covers the output of `dumps` without the field: another layout of the same values does not break
    it.
    """
    text = dumps(record)
    checksum = zlib.crc32(text.encode(), before)
    comma = "," if record else ""
    return f'{text[:-1]}{comma}"{_CHECKSUM}":"{checksum:08x}"}}', checksum


def unseal(record: dict[str, Any], before: int = 0) -> tuple[dict[str, Any], int]:
    """Returns a sealed record without its checksum, and that number.

    Raises ValueError if the checksum is missing or wrong, for example after a change.
    """
    values = {name: value for name, value in record.items() if name != _CHECKSUM}
    checksum = zlib.crc32(dumps(values).encode(), before)
    if record.get(_CHECKSUM) != f"{checksum:08x}":
        raise ValueError("does not agree with its checksum, so it was damaged or changed")
    return values, checksum


def _check_surrogates(text: str, value: Any) -> None:
    if _SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("holds half of a surrogate pair, which is no character") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"has the key {_short(repr(name), 80)} twice in an object")
            seen.add(name)
    return made


def _constant(text: str) -> Any:
    raise ValueError(f"has {text}, which is no number of JSON")


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"has a number out of range, {_short(text, 40)}")
    return value


def _integer(text: str) -> int:
    if len(text) > _LONGEST_INTEGER:
        raise ValueError(f"has a number out of range, of {len(text.lstrip('-'))} digits")
    _float(text)
    return int(text)


def _short(text: str, most: int) -> str:
    """Shortens the text; three dots replace what is cut off."""
    return text if len(text) <= most else f"{text[:most]}..."


def _replaced(value: Any, put: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else put(value)
    if isinstance(value, dict):
        return {name: _replaced(item, put) for name, item in value.items()}
    return [_replaced(item, put) for item in value] if isinstance(value, (list, tuple)) else value
