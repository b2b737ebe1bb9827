"""The puzzle of `tts-decode demo`: reach a number with three others, each used once."""

from __future__ import annotations

import re
from collections.abc import Sequence

SOLVED = (
    "5 * 9 - 3",
    "7 + 2 + 8",
    "6 * 8 + 5",
    "9 - 4 + 3",
    "4 * 7 - 6",
    "3 * 5 + 9",
    "8 + 6 - 2",
    "9 * 2 + 7",
    "6 + 3 + 4",
    "8 * 3 - 5",
    "2 * 9 + 4",
    "7 * 6 - 8",
)
NUMBERS, TARGET = (6, 2, 4), 26


def puzzle(numbers: Sequence[int], target: int) -> str:
    """Returns the prompt: solved puzzles, then one to solve."""
    return "\n\n".join(
        ["Use each number once to reach the target.", *map(_solved, SOLVED), _asked(numbers, target)]
    )


def solves(text: str, numbers: Sequence[int], target: int) -> bool:
    """Whether a text begins with an expression that uses each number once and equals the target."""
    expression = text.partition("=")[0].strip()
    used = re.fullmatch(r"\d{1,3}(?: [-+*] \d{1,3})*", expression)
    return (
        used is not None
        and sorted(map(int, re.findall(r"\d+", expression))) == sorted(numbers)
        and _value(expression) == target
    )


def _asked(numbers: Sequence[int], target: int) -> str:
    listed = ", ".join(map(str, sorted(numbers, reverse=True)))
    return f"Numbers: {listed}. Target: {target}.\nAnswer:"


def _value(expression: str) -> int:
    """Evaluates numbers joined by +, - and *, products first."""
    total, sign = 0, 1
    for part in re.split(r" ([-+]) ", expression):
        if part in ("+", "-"):
            sign = 1 if part == "+" else -1
            continue
        product = sign
        for factor in part.split(" * "):
            product *= int(factor)
        total += product
    return total


def _solved(expression: str) -> str:
    numbers, value = [int(digits) for digits in re.findall(r"\d+", expression)], _value(expression)
    return f"{_asked(numbers, value)} {expression} = {value}"
