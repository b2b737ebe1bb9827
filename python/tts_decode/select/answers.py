"""The final answer inside a worked solution. Texts are a model's: every rule is linear in their length."""

from __future__ import annotations

import re
from decimal import Decimal

from .units import unit_named

_BOX = re.compile(r"\\boxed\s{0,9}\{")
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)  # one behind a backslash is text
_ANSWER_IS = re.compile(r"answer\s{0,9}(?:is|:|=)[ \t]{0,9}:?\s{0,9}([^\n]+)", re.IGNORECASE)
_HASHES = re.compile(r"^####[ \t]*([^\n]+)", re.MULTILINE)
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_PLAIN = re.compile(rf"[+-]?(?:{_DIGITS})(?:[eE][+-]?\d{{1,4}})?")
_PROSE_NUMBER = re.compile(rf"-?(?:{_DIGITS})")
_OPERATORS = ("+", "-", "*", "/", "^", "=", "\\times", "\\cdot", "\u00d7", "\u00b7", "\u00f7", "\u2212")
_REACH = 1000  # characters around the last digit that are looked at
_DECORATION = "*$ \t.,;:!?"
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3})")
# Of two letters or more: a single one may be a variable.
_UNIT = re.compile(
    r"(?:\*\*|\$|\\\))?[ \t]*(?P<before>(?:(?:square|cubic|sq|cu)[ \t]+)?)(?P<word>[a-zA-Z]{2,})\b"
    r"(?P<power>(?:[ \t]+(?:squared|cubed)\b)?)"
)
_BOLD = re.compile(r"(?<![\w)])\*\*(?=\S)|(?<=\S)\*\*(?![\w(])")  # not that of 2**3
_PER = re.compile(r"[ \t]*(?:/|per\b)")  # miles per hour are no miles
_UNITS = re.compile(r"(?:[^\W\d_]+|%)?")  # what may follow a number in one word: 5kg, 5%


def extract_answer(text: str) -> str:
    r"""The last \boxed{...}, or what follows the last `####` or "answer is", or the last number or the
    expression that ends with it, or all the text. A number keeps the unit behind it: `5 hours`, not `5`."""
    boxed = last_boxed(text)
    if boxed is not None:
        return boxed
    stated = stated_answer(text)
    if stated is not None:
        return stated
    value = last_value(text)
    if not value:
        return text.strip()
    _, found, behind = _THOUSANDS.sub("", text[-_REACH:]).rpartition(value)
    unit = unit_behind(behind) if found and plain_number(value) is not None else ""
    return f"{value} {unit}" if unit else value


def last_boxed(text: str) -> str | None:
    r"""What the last \boxed{} holds; None where there is none, or the text ends inside its braces."""
    boxes = [*_BOX.finditer(text)]
    if not boxes:
        return None
    depth = 1
    for brace in _BRACES.finditer(text, boxes[-1].end()):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return _clean(text[boxes[-1].end() : brace.start()])
    return None


def stated_answer(text: str) -> str | None:
    """What follows the last `####` at the begin of a line, else the last "answer is", to the line's end."""
    for pattern in (_HASHES, _ANSWER_IS):
        stated = pattern.findall(text)
        if stated:
            return _clean(stated[-1])
    return None


def last_value(text: str) -> str | None:
    """The last number of a text, without its unit; None without digits.

    A number that is part of an expression, as in `2/3`, `3 + 5` or `sqrt(3)`, is not taken out of it: the
    expression is the value, from its last `=` on.
    """
    at = next((i for i in range(len(text) - 1, -1, -1) if text[i].isdecimal()), None)
    if at is None:
        return None
    begin, end = text.rfind("\n", 0, at) + 1, text.find("\n", at)
    line = text[max(begin, at - _REACH) : min(end if end >= 0 else len(text), at + _REACH)]
    formulas = re.findall(r"\$([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", line)
    if formulas and any(re.search(r"\d", part) for part in formulas[-1]):
        rest = line[max(line.rfind("$"), line.rfind("\\)"), line.rfind("\\]")) + 1 :]
        if not re.search(r"\d", rest):
            return _reduced("".join(formulas[-1]))
    words = _BOLD.sub("", line).split()
    at = max(i for i, word in enumerate(words) if re.search(r"\d", word))
    first = at
    while first > 0 and (
        (words[first].startswith(_OPERATORS) and not _signed(words[first]))
        or words[first - 1].endswith(_OPERATORS)
        or _open(words[first : at + 1])
    ):
        first -= 1
    return _reduced(" ".join(words[first : at + 1]))


def unit_behind(text: str) -> str:
    """The unit that a text behind a number begins with, as it is written; "" for none that is known."""
    found = _UNIT.match(text)
    if found is None or unit_named(found["word"]) is None or _PER.match(text, found.end()):
        return ""
    if found["word"].casefold() in ("in", "am") and text[found.end() :].strip(" \n.!*$)"):  # "5 in all"
        return ""
    return " ".join([*found["before"].split(), found["word"], *found["power"].split()])


def plain_number(text: str) -> Decimal | None:
    """The number that a text is, with thousands separators or an exponent; None if it is anything else."""
    text = text.strip().replace("\u2212", "-")
    return Decimal(text.replace(",", "")) if _PLAIN.fullmatch(text) else None


def _open(words: list[str]) -> bool:
    """Whether they close a bracket that begins before them."""
    closed = "".join(words)
    return closed.count(")") + closed.count("]") > closed.count("(") + closed.count("[")


def _signed(word: str) -> bool:
    return word[:1] in "+-\u2212" and len(word) > 1


def _reduced(expression: str) -> str:
    """Behind the last `=`; a number without what surrounds it."""
    value = expression.rpartition("=")[2].strip(_DECORATION).removeprefix("\\boxed{").strip(_DECORATION)
    number = _PROSE_NUMBER.search(value)
    if (
        number
        and not value[: number.start()].strip("$\u20ac\u00a3(")
        and _UNITS.fullmatch(value[number.end() :].strip(")}"))
    ):
        return number[0].replace(",", "")
    return value


def _clean(answer: str) -> str:
    """Drop what decorates an answer: markdown and dollar signs, a final full stop, thousands separators."""
    answer = answer.strip().strip("*$ ").rstrip(".").strip("*$ ")
    return answer.replace(",", "") if plain_number(answer) is not None else answer
