"""Sums of several terms that the default model computes in steps of about 60 to 100 tokens."""

from __future__ import annotations

import random
import re
from typing import NamedTuple

STEPS = 5
_SEED = 23
_FIRST, _ADDED = (1, 12), (1, 3)  # sums small enough for the model to be right now and then

# One sum a step, in one of several wordings, so that continuations of a prefix differ. The model copies a
# wording, now and then goes astray in it, and errs in sums; a wrong sum is seldom repaired.
_WORDINGS = (
    "The total so far is {total}, and we add {added} to it. We write the sum down with care before we "
    "go on: {total} + {added} = {sum}. There is no need to hurry, since there is only one sum to work "
    "out in each step of this task, and we would like to do it well.",
    "Now we take the number {total} that we have, and add {added} to it once more. As all the steps of "
    "this task are alike, we only have to be careful with the number that we write down at the end: "
    "{total} + {added} = {sum}. It is larger than the one before, as it should be.",
    "We are at {total} and have to go up by {added}. Let us think of a row of stones that lie side by "
    "side: there are {total} of them, and we put down {added} more at the end of the row. If we count "
    "all of the stones, we find that {total} + {added} = {sum}.",
    "Next comes a simple sum, which we can do in the head. The first number is {total}, the second one "
    "is {added}, and both are small enough to be added without a pencil: {total} + {added} = {sum}. We "
    "keep the result in mind, because the next step begins with it.",
)
# First term, what is added, wordings of the steps.
_SOLVED = ((9, 4, (0, 1, 2, 3, 1)), (4, 3, (2, 3, 0, 1, 0)))
_ANSWER = re.compile(rf"total after step {STEPS} is (-?\d+)[,.]")
_ASTRAY = re.compile(r"\n\n(?!$|S$|St$|Ste$|Step)")
_TAIL = 48  # characters in which either shows as soon as it is there


class Problem(NamedTuple):
    name: str
    prompt: str
    answer: str


def problems(count: int) -> list[Problem]:
    """The first `count`, all different: two solved by rule, the question and the beginning of its first
    step."""
    solved = {(first, added) for first, added, _ in _SOLVED}
    pairs = [
        (first, added)
        for first in range(_FIRST[0], _FIRST[1] + 1)
        for added in range(_ADDED[0], _ADDED[1] + 1)
        if (first, added) not in solved
    ]
    random.Random(_SEED).shuffle(pairs)
    if count > len(pairs):
        raise ValueError(f"count: got {count}, expected at most {len(pairs)}, which is how many there are")
    examples = "".join(_solution(*example) for example in _SOLVED)
    return [
        Problem(
            f"{first} + {STEPS} x {added}",
            f"{examples}{_question(first, added)}Step 1 of {STEPS}.",
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
    asked = f"What is the total after step {STEPS}?"
    return f"Question: Start at {first} and add {added}, {STEPS} times. {asked}\n"


def _solution(first: int, added: int, wordings: tuple[int, ...]) -> str:
    text, total = _question(first, added), first
    for number, wording in enumerate(wordings, start=1):
        worked = _WORDINGS[wording].format(total=total, added=added, sum=total + added)
        total += added
        text += (
            f"Step {number} of {STEPS}. {worked} So the total after step {number} is {total}, and what we "
            f"add in each step is {added}.\n\n"
        )
    return text
