"""Decides whether two answers mean the same.

Plain numbers and words are compared here; mathematics by math-verify, in a process with limits of time and
memory.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from ..select import extract_answer, last_boxed, last_value, plain_number, stated_answer
from .mathematics import MATHEMATICS, UnjudgedError
from .notation import CACHED, normalised, spelling
from .open_calculations import left_open
from .prose import values_in_prose
from .structure import Parts, interval, named, parts, variables
from .values import close, number, same_value
from .words import is_words

_LONGEST = 2000  # characters of an answer; longer ones are compared as text only
_LINE = 100  # characters of a text that may consist of the answer alone
_DEEPEST = 40  # nested brackets
_NAMED_TUPLE = re.compile(r"^\(\s*[a-zA-Z](?:\s*,\s*[a-zA-Z])+\s*\)\s*=\s*(?=\()")  # (x,y) = (1,2)
_EQUALS = re.compile(r"=[\s$]*$")  # before the calculation of 7 = 3 + 4
_MOST_PAIRS = 400  # values compared for one pair of answers


def same_answer(answer: str, expected: str) -> bool:
    r"""Whether two answers, as `extract_answer` returns them, mean the same.

    Numbers are equal as numbers, words regardless of case. LaTeX, fractions, sets, intervals and equations
    are compared by math-verify; a comparison that takes too long counts as not equal, and in `unjudged`. A
    unit counts if both have one. Sets and lists have no order; tuples do. A decimal of six significant digits
    or more equals the exact number that it rounds.

    Raises MissingExtraError if only mathematics can tell and math-verify is not installed.
    """
    if answer.strip() == expected.strip():
        return bool(answer.strip())
    if not (comparable(answer) and comparable(expected)):
        return False
    x, y = plain_number(answer), plain_number(expected)
    if x is not None and y is not None:
        return close(x, y)
    first, second = normalised(answer), normalised(expected)
    try:
        return bool(first and second) and _Comparison().same(first, second)
    except UnjudgedError:
        return False


def is_correct(text: str, expected: str) -> bool:
    r"""Whether the final answer of a text is the expected one.

    The content of `\boxed{}` has to be the answer. In a sentence after "answer is", or a text without either,
    the last number or expression may be it too, unless the words around it change it: `at least 5`, `5 or 6`,
    another unit. Where nothing marks the answer and a number is expected, `3 + 4` and `2^3` are no answers
    (`open_calculations`). Raises the errors of `same_answer`.
    """
    boxed, stated = last_boxed(text), stated_answer(text)
    answer = text.strip() if boxed is None and stated is None else extract_answer(text)
    marked = boxed is not None or bool(stated)
    alone = marked or len(answer) <= _LINE  # whether the answer may be the whole of it
    if not marked and comparable(expected):
        value = last_value(text) or ""
        if comparable(value) and left_open(value, expected):
            result = _result_before(text, value)
            return bool(result) and not left_open(result, expected) and same_answer(result, expected)
        alone = alone and not left_open(answer, expected)
    if alone and same_answer(answer, expected):
        return True
    if boxed is not None:
        return False
    if stated and last_value(stated) is None:  # "The answer is their sum. 3 + 4 = 7."
        stated = text[max(0, text.rfind(stated)) :]
    values = values_in_prose(stated or text, expected)
    return bool(values) and all(same_answer(value, expected) for value in values)


def _result_before(text: str, calculation: str) -> str:
    """Returns the value that a text equates with the calculation that it ends with; "" for none."""
    equals = _EQUALS.search(text[: max(0, text.rfind(calculation))])
    return (last_value(text[: equals.start()]) or "") if equals else ""


@lru_cache(maxsize=CACHED)
def comparable(answer: str) -> bool:
    """Whether an answer is compared by more than its text: it is neither too long nor nested too deeply."""
    return len(answer) <= _LONGEST and _depth(answer) <= _DEEPEST


def needs_mathematics(answer: str) -> bool:
    """Whether comparing this answer may need math-verify: it is neither a number nor words."""
    if not comparable(answer) or plain_number(answer) is not None:
        return False
    found = parts(normalised(answer))
    return not found.single or not (number(found.items[0]) is not None or is_words(found.items[0]))


def unjudged() -> dict[str, int]:
    """Counts the comparisons that a limit ended, by limit: "time", "memory", "crash".

    They counted as not equal.
    """
    return dict(MATHEMATICS.unjudged)


class _Comparison:
    """A comparison of two answers' parts; sets may need many pairs."""

    def __init__(self) -> None:
        self._left = _MOST_PAIRS

    def same(self, first: str, second: str) -> bool:
        self._left -= 1
        if self._left < 0:
            raise UnjudgedError("pairs")
        if spelling(first) == spelling(second):
            return True
        if (_NAMED_TUPLE.match(first) is None) != (_NAMED_TUPLE.match(second) is None):
            first, second = (_NAMED_TUPLE.sub("", text) for text in (first, second))
        return self._same_parts(parts(first), parts(second))

    def _same_parts(self, first: Parts, second: Parts) -> bool:
        if first.kind != second.kind:
            first, second = _as_interval(first, second), _as_interval(second, first)
        if first.single and second.single:
            said = interval(first.items[0]), interval(second.items[0])
            if said[0] and said[1] and len({*variables(first.items[0]), *variables(second.items[0])}) == 1:
                return self._same_parts(said[0], said[1])
            return same_value(first.items[0], second.items[0])
        kinds = {first.kind, second.kind}
        if len(first.items) != len(second.items):
            return False
        if len(kinds) > 1 and ("" not in kinds or not kinds <= {"", "()", "{}", "cup"}):
            return False
        if first.ordered or second.ordered or named(first) != named(second):
            return all(map(self.same, first.items, second.items))
        return self._matched(first.items, second.items)

    def _matched(self, first: Sequence[str], second: Sequence[str]) -> bool:
        """Whether the values of the two sides can be paired so that each pair is equal, in any order."""
        left = list(second)
        for value in first:
            at = next((i for i, other in enumerate(left) if self.same(value, other)), None)
            if at is None:
                return False
            del left[at]
        return True


def _as_interval(one: Parts, other: Parts) -> Parts:
    if one.single and other.ordered:
        return interval(one.items[0]) or one
    return one


def _depth(text: str) -> int:
    """Returns the depth of nested brackets."""
    depth = deepest = 0
    for mark in text:
        depth += (mark in "({[") - (mark in ")}]")
        deepest = max(deepest, depth)
    return deepest
