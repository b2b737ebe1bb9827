r"""The parts of an answer: one value, or values in brackets, braces, a list, a union.

Brackets and commas are compared here; only single values go to the algebra, which takes `(1,2)` for an
interval, `\{1,2\}` for the same, and loses the order.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from .notation import CACHED

_OPENERS = {"(": ")", "[": "]", "\\{": "\\}", "{": "}"}
_TOKEN = re.compile(r"\\left|\\right|\\[a-zA-Z]+|\\[{}]|.", re.DOTALL)
_OPEN, _CLOSE = {"(", "[", "{", "\\{"}, {")", "]", "}", "\\}"}
_AND = re.compile(r"\\text\{\s*(?:,\s*)?(?:and|or)\s*\}|(?<=[\s,])(?:and|or)(?=\s)|;", re.IGNORECASE)
_MEMBER = re.compile(r"^[a-zA-Z]\s*\\in(?![a-zA-Z])\s*")
_LESS = r"(<|\\le(?![a-zA-Z]))"
_MORE = r"(>|\\ge(?![a-zA-Z]))"
_SIDE = r"([^<>=]*?[^<>=\s])"
_BETWEEN = re.compile(rf"^{_SIDE}\s*{_LESS}\s*[a-zA-Z]\s*{_LESS}\s*{_SIDE}$")
_BETWEEN_TURNED = re.compile(rf"^{_SIDE}\s*{_MORE}\s*[a-zA-Z]\s*{_MORE}\s*{_SIDE}$")
_ABOVE = re.compile(rf"^[a-zA-Z]\s*{_MORE}\s*{_SIDE}$|^{_SIDE}\s*{_LESS}\s*[a-zA-Z]$")
_BELOW = re.compile(rf"^[a-zA-Z]\s*{_LESS}\s*{_SIDE}$|^{_SIDE}\s*{_MORE}\s*[a-zA-Z]$")
_BOTH = re.compile(
    r"\s*(?:\\text\{\s*and\s*\}|(?<=\s)and(?=\s)|\\(?:land|wedge)(?![a-zA-Z]))\s*", re.IGNORECASE
)
_ASSIGNED = re.compile(r"^([a-zA-Z])\s*=")
_VARIABLE = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z](?![a-zA-Z])")
_REALS = ("\\mathbb{R}", "\\text{all real numbers}", "all real numbers")


class Parts(NamedTuple):
    r"""kind: "" for values without brackets, "{}" for a set, "cup" for a union, else the two brackets."""

    kind: str
    items: tuple[str, ...]

    @property
    def ordered(self) -> bool:
        return self.kind not in ("", "{}", "cup")

    @property
    def single(self) -> bool:
        return self.kind == "" and len(self.items) == 1


@lru_cache(maxsize=CACHED)
def parts(text: str) -> Parts:
    """Returns the parts of a normalised answer. If brackets do not match, it is one value."""
    text = _MEMBER.sub("", text.strip())
    if text in ("\\emptyset", "\\{\\}", "\\{ \\}"):
        return Parts("{}", ())
    united = _split(text, "\\cup")
    if len(united) > 1:
        return Parts("cup", tuple(united))
    kind, inner = _brackets(text)
    if kind:
        items = _split(inner, ",")
        if len(items) == 1 and (kind == "()" or text[0] == "{"):  # {3}: LaTeX does not print these braces
            return parts(inner)
        if "\\mid" in inner or (re.search(r"(?<!\|)\|(?!\|)[^|]*$", inner) and kind == "{}"):
            return Parts("", (text,))  # a set given by its condition
        return Parts(kind, tuple(expanded for item in items for expanded in _signs(item)))
    both = _both(text)
    if both:
        return Parts("", (both,))
    items = _split(_AND.sub(",", text), ",")
    return Parts("", tuple(expanded for item in items if item for expanded in _signs(item)))


@lru_cache(maxsize=CACHED)
def interval(text: str) -> Parts | None:
    """Returns the interval given by an inequality in one variable, or by a name of the real numbers."""
    if text in _REALS:
        return Parts("()", ("-\\infty", "\\infty"))
    between, above, below = _BETWEEN.match(text), _ABOVE.match(text), _BELOW.match(text)
    turned = _BETWEEN_TURNED.match(text)
    if between:
        low, left, right, high = between.groups()
        return Parts(("(" if left == "<" else "[") + (")" if right == "<" else "]"), (low, high))
    if turned:
        high, right, left, low = turned.groups()
        return Parts(("(" if left == ">" else "[") + (")" if right == ">" else "]"), (low, high))
    if above:
        sign, low = (above[1], above[2]) if above[1] else (above[4], above[3])
        return Parts(("(" if sign in "<>" else "[") + ")", (low, "\\infty"))
    if below:
        sign, high = (below[1], below[2]) if below[1] else (below[4], below[3])
        return Parts("(" + (")" if sign in "<>" else "]"), ("-\\infty", high))
    return None


def variables(text: str) -> list[str]:
    """Returns the single letters."""
    return _VARIABLE.findall(_BOTH.sub(" ", text))


def named(values: Parts) -> bool:
    """Whether each value names its variable, each a different one: `x=1, y=2`.

    Such values have an order when compared with a list without names.
    """
    names = [found[1] for value in values.items if (found := _ASSIGNED.match(value))]
    return 1 < len(names) == len(values.items) == len(set(names))


def _both(text: str) -> str:
    """Joins two inequalities that must both hold: `1<x<3` for `x>1 and x<3`; "" for anything else.

    Inequalities that cannot be joined are left as they are.
    """
    sides = [side for part in _BOTH.split(text) if (side := interval(part.strip()))]
    if len(sides) != 2 or len(_BOTH.findall(text)) != 1:
        return ""
    below, above = sorted(sides, key=lambda side: side.items[0] != "-\\infty")
    names = set(variables(text))
    if below.items[0] != "-\\infty" or above.items[1] != "\\infty" or len(names) != 1:
        return text
    left, right = ("<" if bracket in "()" else "\\le " for bracket in (above.kind[0], below.kind[1]))
    return f"{above.items[0]}{left}{names.pop()}{right}{below.items[1]}"


def _brackets(text: str) -> tuple[str, str]:
    """Returns the kind of the brackets around the whole text and their content; "" and the text without."""
    tokens = _TOKEN.findall(text)
    if len(tokens) < 2 or tokens[0] not in _OPENERS or tokens[-1] not in _OPENERS.values():
        return "", text
    depth = 0
    for index, token in enumerate(tokens):
        depth += (token in _OPEN) - (token in _CLOSE)
        if depth == 0 and index < len(tokens) - 1:
            return "", text
    return (tokens[0] + tokens[-1]).replace("\\", ""), "".join(tokens[1:-1]).strip()


def _split(text: str, mark: str) -> list[str]:
    """Splits at each mark outside of brackets."""
    found, depth, current = [], 0, list[str]()
    for token in _TOKEN.findall(text):
        depth += (token in _OPEN) - (token in _CLOSE)
        if token == mark and depth == 0:
            found.append("".join(current).strip())
            current = []
        else:
            current.append(token)
    return [*found, "".join(current).strip()]


def _signs(item: str) -> list[str]:
    r"""Returns both values of an item with a single \pm."""
    if len(re.findall(r"\\pm(?![a-zA-Z])", item)) != 1:
        return [item]
    return [re.sub(r"\\pm(?![a-zA-Z])\s*", sign, item) for sign in "+-"]
