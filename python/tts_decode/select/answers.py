"""The final answer inside a worked solution."""

from __future__ import annotations

import re

_ANSWER_IS = re.compile(r"answer\s*(?:is|:|=)\s*:?\s*([^\n]+)", re.IGNORECASE)
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def extract_answer(text: str) -> str:
    r"""The last \boxed{...}, or what follows the last "answer is", or the last number, or all the text."""
    boxed = _last_boxed(text)
    if boxed is not None:
        return boxed
    stated = _ANSWER_IS.findall(text)
    if stated:
        return _clean(stated[-1])
    numbers = _NUMBER.findall(text)
    if numbers:
        return _clean(numbers[-1])
    return text.strip()


def _clean(answer: str) -> str:
    """Drop what decorates an answer: markdown and dollar signs, a final full stop, thousands separators."""
    answer = answer.strip().strip("*$ ").rstrip(".").strip("*$ ")
    return answer.replace(",", "") if _NUMBER.fullmatch(answer) else answer


def _last_boxed(text: str) -> str | None:
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    begin = start + len("\\boxed{")
    depth = 1
    for i in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return _clean(text[begin:i])
    return None  # the text ends inside the braces
