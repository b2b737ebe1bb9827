"""Finds the final answer in a worked solution. A model wrote the text: every rule is linear in its length."""

from __future__ import annotations

import re
from decimal import Decimal

from .units import unit_named

_BOX = re.compile(r"\\boxed\s{0,9}\{")
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)  # a brace after a backslash is text
_ANSWER_IS = re.compile(r"answer\s{0,9}(?:is|:|=)[ \t]{0,9}:?\s{0,9}([^\n]+)", re.IGNORECASE)
_HASHES = re.compile(r"^####[ \t]*([^\n]+)", re.MULTILINE)
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_PLAIN = re.compile(rf"[+-]?(?:{_DIGITS})(?:[eE][+-]?\d{{1,4}})?")
_PROSE_NUMBER = re.compile(rf"-?(?:{_DIGITS})")
_OPERATORS = ("+", "-", "*", "/", "^", "=", "\\times", "\\cdot", "\u00d7", "\u00b7", "\u00f7", "\u2212")
_REACH = 1000  # characters examined around the last digit
_DECORATION = "*$ \t.,;:!?"
_DECORATED = re.compile(rf"(?:(?!(?<!\.)\.\d)[{_DECORATION}])*")  # up to the point of .5, not of ...5
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3})")
# Two letters or more: a single one may be a variable.
_UNIT = re.compile(
    r"(?:\*\*|\$|\\\))?[ \t]*(?P<before>(?:(?:square|cubic|sq|cu)[ \t]+)?)(?P<word>[a-zA-Z]{2,})\b"
    r"(?P<power>(?:[ \t]+(?:squared|cubed)\b)?)"
)
_BOLD = re.compile(r"(?<![\w)])\*\*(?=\S)|(?<=\S)\*\*(?![\w(])")  # not the one in 2**3
_PER = re.compile(r"[ \t]*(?:/|per\b)")  # miles per hour are not miles
_UNITS = re.compile(r"(?:[^\W\d_]+|%)?")  # suffix of a number in the same word: 5kg, 5%


def extract_answer(text: str) -> str:
    r"""Returns the final answer in a text, by the first rule that applies.

    The rules take the last \boxed{...}; what follows the last `####` or "answer is"; the last number, or the
    expression that ends with it; all of the text. A number keeps the unit after it: `5 hours`, not `5`.
    """
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
    r"""Returns the content of the last \boxed{}; None without one, or if the text ends inside its braces."""
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
    """Returns the rest of the line after the last `####` at a line's start, else the last "answer is"."""
    for pattern in (_HASHES, _ANSWER_IS):
        stated = pattern.findall(text)
        if stated:
            return _clean(stated[-1])
    return None


def last_value(text: str) -> str | None:
    """Returns the last number of a text, without its unit; None without digits.

    A number in an expression, as in `2/3`, `3 + 5` or `sqrt(3)`, is not taken out of it: the expression is
    the value, starting after its last `=`.
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
    """Returns the unit at the start of a text after a number, as written; "" if none is known."""
    found = _UNIT.match(text)
    if found is None or unit_named(found["word"]) is None or _PER.match(text, found.end()):
        return ""
    if found["word"].casefold() in ("in", "am") and text[found.end() :].strip(" \n.!*$)"):  # "5 in all"
        return ""
    return " ".join([*found["before"].split(), found["word"], *found["power"].split()])


def plain_number(text: str) -> Decimal | None:
    """Returns the number that a text is, with thousands separators or an exponent; otherwise None."""
    text = text.strip().replace("\u2212", "-")
    return Decimal(text.replace(",", "")) if _PLAIN.fullmatch(text) else None


def _open(words: list[str]) -> bool:
    """Whether the words close a bracket that begins before them."""
    closed = "".join(words)
    return closed.count(")") + closed.count("]") > closed.count("(") + closed.count("[")


def _signed(word: str) -> bool:
    return word[:1] in "+-\u2212" and len(word) > 1


def _reduced(expression: str) -> str:
    """Returns what follows the last `=`; a number without its surroundings."""
    value = _bare(_bare(expression.rpartition("=")[2]).removeprefix("\\boxed{"))
    number = _PROSE_NUMBER.search(value)
    if (
        number
        and not value[: number.start()].strip("$\u20ac\u00a3(")
        and _UNITS.fullmatch(value[number.end() :].strip(")}"))
    ):
        return number[0].replace(",", "")
    return value


def _bare(text: str) -> str:
    """Drops decoration around a value, but not the point of `.5`."""
    begin = _DECORATED.match(text)
    return text[begin.end() if begin else 0 :].rstrip(_DECORATION)


def _clean(answer: str) -> str:
    """Drops decoration of an answer: markdown and dollar signs, a final full stop, thousands separators."""
    answer = answer.strip().strip("*$ ").rstrip(".").strip("*$ ")
    return answer.replace(",", "") if plain_number(answer) is not None else answer
