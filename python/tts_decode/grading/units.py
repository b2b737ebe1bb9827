"""Units behind a value: `5 cm`, `5\\text{ cm}`, `90^\\circ`, `\\$5`, `12 apples`, `1010_2`."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from ..select import unit_named
from .notation import CACHED

_SHORT = r"cm|mm|km|kg|mg|ft|in|lb|lbs|oz|hr|hrs|ml|mL|mph|am|pm|AM|PM|a\.m|p\.m|yd|mi|dm"
_POWER = r"(?:\s*\^\s*\{?\s*(?P<power>[23])\s*\}?)?"
_BEHIND = re.compile(rf"\\text\{{\s*(?P<text>[^{{}}\\]*)\}}{_POWER}\s*$")
# Words after a number: three letters or more, so that no variable is taken for a unit.
_WORDS = re.compile(
    rf"(?<=[\d)}}])\s*(?P<text>(?:{_SHORT})(?![a-zA-Z])|(?<=\s)[a-zA-Z]{{3,}}[a-zA-Z ./-]*){_POWER}\s*$"
)
_CURRENCY = re.compile(r"^(-?)\s*(?:\\\$|\$|(\u20ac|\u00a3))\s*(?=[\d.\\(])")
_NUMBER = re.compile(r"-?(?:\d[\d.,]*(?:\\frac\{\d+\}\{\d+\}|/\d+)?|\\frac\{\d+\}\{\d+\})\s*")
_PER = re.compile(r"\s*/\s*|\s+per\s+")
_ANGLE_OF = re.compile(r"\\?(?:sin|cos|tan|cot|sec|csc)")  # in cos 60^\\circ the unit belongs to the argument
_CURRENCIES = {None: "$", "\u20ac": "euro", "\u00a3": "gbp"}


class Measured(NamedTuple):
    """A value, and the unit after it in one spelling, "" for none."""

    value: str
    unit: str


@lru_cache(maxsize=CACHED)
def measured(text: str) -> Measured:
    r"""Takes the unit off a normalised answer. The text inside `\text{}` is a unit only after a value."""
    money = _CURRENCY.match(text)
    if money:
        return Measured(money[1] + text[money.end() :], _CURRENCIES[money[2]])
    if text[-1:] in ("\u20ac", "\u00a3") and re.search(r"\d", text):
        return Measured(text[:-1].strip(), _CURRENCIES[text[-1]])
    if text.endswith("\\%"):
        return Measured(text[:-2].strip(), "%")
    if text.endswith("^\\circ") and not _ANGLE_OF.search(text):
        return Measured(text[: -len("^\\circ")].strip(), "deg")
    found = _BEHIND.search(text) or _WORDS.search(text)
    if not found or not text[: found.start()].strip() or not re.search(r"\d|\\pi", text[: found.start()]):
        return Measured(text, "")
    return Measured(text[: found.start()].strip(), _canonical(found["text"], found["power"]))


def currency_before(text: str) -> str:
    """Returns the currency whose sign a text ends with, as a unit; "" for none."""
    sign = text.rstrip()[-1:]
    return _CURRENCIES.get(None if sign == "$" else sign or "none", "")


def measured_in(text: str, unit: str) -> Measured | None:
    """Returns a number with this unit if `measured` takes the unit for variables; None otherwise.

    Examples are `5 m^2` and `60 km/h`.
    """
    found = _NUMBER.match(text)
    if not found or not text[found.end() :].strip():
        return None
    behind = re.sub(r"[{}^]", "", re.sub(r"\\text\{([^{}]*)\}", r"\1", text[found.end() :])).strip()
    written = re.fullmatch(r"(.*?[a-zA-Z])\s*([23])?", behind, re.DOTALL)
    if not written or _canonical(written[1], written[2]) != unit:
        return None
    return Measured(found[0].strip(), unit)


def _canonical(unit: str, power: str | None) -> str:
    unit = unit.casefold().strip(" .")
    for word, value in (("square", "2"), ("sq", "2"), ("cubic", "3"), ("cu", "3")):
        if re.match(rf"{word}\b", unit):
            unit, power = unit[len(word) :].strip(" ."), value
    for word, value in (("squared", "2"), ("cubed", "3")):
        if unit.endswith(f" {word}"):
            unit, power = unit.removesuffix(word).strip(), value
    parts = [part.replace(" ", "") for part in _PER.split(unit)]
    named = "/".join(
        unit_named(part) or (part.removesuffix("s") if len(part) > 1 else part) for part in parts
    )
    return (unit_named(named) or named) + (power or "")
