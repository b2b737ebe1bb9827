"""The utility of answering only above a confidence threshold, with the option to abstain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .scores import require_finite


class Selective(NamedTuple):
    """What answering selectively achieves.

    Attributes:
        answered: share of the questions that were answered.
        accuracy: share of those answered that are right, None if none was.
        utility: mean over all questions.
    """

    answered: float
    accuracy: float | None
    utility: float


def selective_utility(
    confidences: Sequence[float], correct: Sequence[bool], threshold: float, wrong: float = -1.0
) -> Selective:
    """Returns the utility of answering at a confidence of `threshold` or more.

    A right answer earns 1, a wrong one `wrong`, and none 0. Jurayj, Cheng and Van Durme, arXiv 2502.13962,
    section 2.

    Args:
        confidences, correct: one entry per question.
        wrong: 0: an exam without penalties; -1: as in Jeopardy; -20: high stakes.
    """
    require_finite("confidences", confidences)
    if len(confidences) != len(correct) or not len(correct):
        raise ValueError(
            f"correct: got {len(correct)} entries for {len(confidences)} confidences, expected one each, and "
            "at least one"
        )
    given = [right for c, right in zip(confidences, correct, strict=True) if c >= threshold]
    accuracy = sum(given) / len(given) if given else None
    earned = sum(1.0 if right else wrong for right in given)
    return Selective(len(given) / len(correct), accuracy, earned / len(correct))
