"""The conclusion of a text, in the form in which it is compared."""

from __future__ import annotations

from ..grading import is_correct
from ..select import extract_answer, last_boxed, last_value, plain_number, stated_answer


def final_number(text: str) -> str | None:
    r"""Returns the number that a text ends with, or None: "The answer is 2 + 3 = 5." gives "5".

    A number inside an expression does not count: `\boxed{\sqrt{3}}`, `2/3` and `3 + 5` give None.
    """
    boxed = last_boxed(text)
    stated = stated_answer(text)
    for part in (boxed,) if boxed is not None else (stated, text):
        value = None if part is None else last_value(part)
        if value is not None and plain_number(value) is not None:
            return value.replace(",", "")
    return None


def final_answer(text: str, expected: str | None) -> str:
    """Returns the conclusion of a text, in the form in which it is compared with `expected`."""
    if expected is not None and plain_number(expected) is not None:
        answer = extract_answer(text)
        return final_number(text) or (answer if len(answer) < 200 and is_correct(text, expected) else "")
    return extract_answer(text)
