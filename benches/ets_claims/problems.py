"""Sums of several terms that the default model works out in steps of some 80 to 120 tokens."""

from __future__ import annotations

import random
import re
from typing import NamedTuple

STEPS = 5
_SEED = 23
_FIRST, _ADDED = (2, 12), (2, 4)  # sums small enough for the model to be right now and then

# One sum a step. A wrong sum is seldom repaired, so that the value of a prefix moves with every step.
_SOLVED_FIRST, _SOLVED_ADDED = 9, 4
_STEP = (
    "Step {number} of {steps}. The total so far is {total}, and we add {added} to it. We write the sum down with care "
    "before we go on to the next step: {total} + {added} = {sum}. There is no need to hurry, since we can take as much "
    "time as we like and there is only one sum to work out in each step of this task, so we do it well. So the total "
    "after step {number} is {sum}.\n\n"
)
_ANSWER = re.compile(rf"total after step {STEPS} is (-?\d+)\.")
_TAIL = 48  # characters in which either shows as soon as it is there
_ASTRAY = re.compile(r"\n\n(?!$|S$|St$|Ste$|Step)")


class Problem(NamedTuple):
    name: str
    prompt: str
    answer: str


def problems(count: int) -> list[Problem]:
    """The first `count`, all different: one solved by rule, then the question and the beginning of its first step."""
    pairs = [
        (first, added)
        for first in range(_FIRST[0], _FIRST[1] + 1)
        for added in range(_ADDED[0], _ADDED[1] + 1)
        if (first, added) != (_SOLVED_FIRST, _SOLVED_ADDED)
    ]
    random.Random(_SEED).shuffle(pairs)
    if count > len(pairs):
        raise ValueError(f"count: got {count}, expected at most {len(pairs)}, which is how many there are")
    solved = _question(_SOLVED_FIRST, _SOLVED_ADDED) + "".join(
        _STEP.format(number=i + 1, steps=STEPS, added=_SOLVED_ADDED, total=total, sum=total + _SOLVED_ADDED)
        for i, total in enumerate(range(_SOLVED_FIRST, _SOLVED_FIRST + STEPS * _SOLVED_ADDED, _SOLVED_ADDED))
    )
    return [
        Problem(
            f"{first} + {STEPS} x {added}",
            f"{solved}{_question(first, added)}Step 1 of {STEPS}.",
            str(first + STEPS * added),
        )
        for first, added in pairs[:count]
    ]


def stated(text: str) -> str | None:
    """The number that a solution states as its answer, None if it states none."""
    found = _ANSWER.search(text)
    return None if found is None else found[1]


def at_its_end(text: str) -> bool:
    """Whether an answer is stated, or a paragraph begins that is no step: such a branch has lost its way."""
    tail = text[-_TAIL:]  # it is asked after each token
    return stated(tail) is not None or _ASTRAY.search(tail) is not None


def _question(first: int, added: int) -> str:
    return (
        f"Question: Start at {first} and add {added}, {STEPS} times. What is the total after step {STEPS}?\n"
    )
