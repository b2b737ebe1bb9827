"""The candidates' answers, with one wording per meaning: what every vote counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from ..core.running import in_thread
from ..grading import group, needs_mathematics
from .result import Candidate

Extract = Callable[[str], "str | None"]
"""The answer in a text, or None to abstain."""

_MANY = 32  # different answers from which on a thread compares them, even if they are mere words


@dataclass(frozen=True)
class Labels:
    """An `extract` whose answers are labels or code: votes compare them as texts, not by meaning."""

    extract: Extract

    def __call__(self, text: str) -> str | None:
        return self.extract(text)


async def answers_of(candidates: Sequence[Candidate], extract: Extract) -> list[str | None]:
    """Returns the answer of each candidate, in one wording per meaning; None if it abstains.

    The wording comes from the first candidate whose answer means the same (`grading.group`). If comparing may
    take more than milliseconds, it runs in a thread, and the event loop continues meanwhile.
    """
    answers = [extract(candidate.text) for candidate in candidates]
    if isinstance(extract, Labels):
        return answers
    texts = dict.fromkeys(answer for answer in answers if answer is not None)
    if len(texts) > _MANY or (len(texts) > 1 and any(map(needs_mathematics, texts))):
        groups = await in_thread(partial(group, answers))
    else:
        groups = group(answers)
    return [None if first is None else answers[first] for first in groups]
