"""Reads a model's replies leniently: unreadable text yields nothing, never an error."""

from __future__ import annotations

import re

_ITEM = re.compile(r"^\s*(?:\d+\s*[.):]|[-*])\s+(\S.*?)\s*$", re.MULTILINE)
_NEEDS = re.compile(r"[(\[]\s*needs\s*:?([^)\]]*)[)\]]", re.IGNORECASE)
_NUMBER = re.compile(r"\d+")


def listed(text: str, limit: int) -> list[str]:
    """Returns the first `limit` items of the numbered or bulleted lists in a text, in order."""
    return _ITEM.findall(text)[:limit]


def with_needs(items: list[str]) -> tuple[list[str], list[list[int]]]:
    """Returns items without their "(needs: 1, 3)", and those numbers as indices, [0, 2]."""
    needs = [
        [int(number) - 1 for found in _NEEDS.findall(item) for number in _NUMBER.findall(found)]
        for item in items
    ]
    return [_NEEDS.sub("", item).strip() for item in items], needs


def ranking(text: str, n: int) -> list[int]:
    """Returns the indices of `n` things in the order in which a text names their numbers 1..n.

    Each occurs once; those that the text does not name follow in their own order.
    """
    named = [int(number) - 1 for number in _NUMBER.findall(text)]
    return list(dict.fromkeys([i for i in named if 0 <= i < n] + list(range(n))))


def choice(text: str, n: int) -> int | None:
    """Returns the index of the first number 1..n in a text; None if there is none."""
    return next((int(k) - 1 for k in _NUMBER.findall(text) if 1 <= int(k) <= n), None)


def numbered(texts: list[str]) -> str:
    """Returns the texts under [1], [2], ..."""
    return "\n\n".join(f"[{i}] {text}" for i, text in enumerate(texts, 1))
