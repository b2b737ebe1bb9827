"""The value that a sentence ends with, unless the words around it change it."""

from __future__ import annotations

import re

from ..select import last_value, unit_behind, unit_named
from .notation import normalised, spelling
from .units import currency_before, measured

_REACH = 60  # characters examined on either side of the value
_OPEN = r"[\s$(*]*(?:[a-zA-Z]\s*=\s*)?[$(*]*$"
_CHANGED_BEFORE = re.compile(
    r"(?:\b(?:not|minus|negative|than|least|most|under|over|below|above|times|plus|root of|log|ln|sin|cos|tan"
    r"|to the power(?: of)?)"
    r"|\d\s*(?:to|through)|[<>\u2264\u2265\u2260\u00b1\u221a\u2212]"
    r"|\\(?:geq?|leq?|lt|gt|neq?|pm|mp|sin|cos|tan|cot|sec|csc|log|ln|exp|lfloor|lceil|sqrt))" + _OPEN,
    re.IGNORECASE,
)
_CHANGED_BEHIND = re.compile(
    r"[kKMi](?!\w)|[\u00b9\u00b2\u00b3\u00bc\u00bd\u00be\u2070-\u207b]"
    r"|[\s$)*]*(?:or|and) (?:more|less|fewer|greater|above|below|over|up)\b"
    r"|\s*(?:squared|cubed|factorial)\b|\s*\\(?:rfloor|rceil|pi)(?![a-zA-Z])"
)
_JOINED = re.compile(r"(?:\bor|\band|\\text\{\s*(?:or|and)\s*\})" + _OPEN, re.IGNORECASE)
_OTHER_UNIT = re.compile(r"\d\s*([a-zA-Z]+)[\s,]*(?:and\s+)?$")  # 1 hour 30
_SCALE = re.compile(r"\s*(?:dozen|hundred|thousand|million|billion|trillion)\b")
_WORD = re.compile(r"\s*(%|[ap]\.m\b|[a-zA-Z][a-zA-Z/]*)")
_LETTERS = re.compile(r"[a-zA-Z]{1,2}(?![a-zA-Z])")
_NAME = re.compile(r"^([a-zA-Z]|\([a-zA-Z](?:\s*,\s*[a-zA-Z])+\))\s*=")
_NAME_BEFORE = re.compile(r"(?:^|[\s$(])([a-zA-Z]|\([a-zA-Z](?:\s*,\s*[a-zA-Z])+\))\s*=[\s$]*$")


def values_in_prose(sentence: str, expected: str) -> list[str]:
    """Returns the values that a sentence ends with, all of which have to equal the expected one.

    `5 or 6` ends with both. Empty if it has no value, qualifies it, as `at least 5` does, or gives it another
    unit than `expected` has.
    """
    value = last_value(sentence)
    if value is None:
        return []
    sentence = re.sub(r"(?<=\d),(?=\d{3})", "", sentence)
    at = sentence.rfind(value)
    before, behind = sentence[max(0, at - _REACH) : at], sentence[at + len(value) :][:_REACH]
    if at < 0:
        return [value]
    if (
        _other_name(before, expected)
        or _other_letters(value, behind)
        or _other_currency(before, behind, expected)
    ):
        return []
    if _CHANGED_BEFORE.search(before) or _CHANGED_BEHIND.match(behind):
        return []
    other = _OTHER_UNIT.search(before)
    if (other and unit_named(other[1])) or _apart(behind, expected):
        return []
    scale = _SCALE.match(behind)
    values = [value + " " + scale[0].strip() if scale else value]
    joined = _JOINED.search(before)
    if joined:
        first = last_value(before[: joined.start()].rpartition("\n")[2])
        values += [] if first is None else [first]
    return values


def _other_name(before: str, expected: str) -> bool:
    """Whether a value belongs to another variable than the expected one: `y = 3` for `x = 3`."""
    said, asked = _NAME_BEFORE.search(before), _NAME.match(normalised(expected))
    return bool(said and asked and spelling(said[1]) != spelling(asked[1]))


def _other_letters(value: str, behind: str) -> bool:
    """Whether a number is the factor of a variable, `3x`, rather than one with a unit, `3m`."""
    found = _LETTERS.match(behind)
    return bool(found and value[-1:].isdecimal() and unit_named(found[0]) is None)


def _other_currency(before: str, behind: str, expected: str) -> bool:
    if behind.lstrip().startswith("$"):  # a math delimiter
        before = before.rstrip("$ ")
    said, unit = currency_before(before), measured(normalised(expected)).unit
    return "" not in (said, unit) and said != unit


def _apart(behind: str, expected: str) -> bool:
    """Whether a word after the value is another unit than the expected answer's."""
    unit, word, told = measured(normalised(expected)).unit, _WORD.match(behind), unit_behind(behind)
    if unit and told:
        return measured(f"1 {told}").unit != unit and unit_named(unit.rstrip("23")) is not None
    if not (unit and word):
        return False
    said = unit_named(word[1])
    alone = not behind[word.end() :].strip(" \n.!*$)")
    if said is None or (said == "in" and not alone):
        return alone and measured(f"1 {word[1]}").unit not in ("", unit)
    return said != unit and unit_named(unit) is not None
