"""Majority and weighted votes over answers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .scores import require_finite

_REPRESENTED = 600.0  # its exp, and sums of many, are far from the limits of float64


def vote(answers: Sequence[str | None], weights: Sequence[float] | None = None) -> dict[str, float]:
    """Returns the votes for each answer, most voted first (ties: the answer seen first). None abstains.

    `weights`, one non-negative number per answer, make it a weighted vote. Empty if every voter abstains.
    """
    if weights is None:
        weights = [1.0] * len(answers)
    if len(weights) != len(answers):
        raise ValueError(f"weights: got {len(weights)} entries for {len(answers)} answers, expected one each")
    require_finite("weights", weights)
    tally: dict[str, float] = {}
    for answer, weight in zip(answers, weights, strict=True):
        if weight < 0:
            raise ValueError(f"weights: got {list(weights)}, expected no negative weight")
        if answer is not None:
            tally[answer] = tally.get(answer, 0.0) + weight
    return dict(sorted(tally.items(), key=lambda item: -item[1]))


def elect(
    answers: Sequence[str | None], weights: Sequence[float] | None = None
) -> tuple[dict[str, float], list[int]]:
    """Returns the votes, as `vote` counts them, and the indices of the voters for the winner, in order.

    If all abstain, these are all voters.
    """
    votes = vote(answers, weights)
    winner = next(iter(votes), None)
    return votes, [i for i, answer in enumerate(answers) if answer == winner]


def vote_weights(scores: Sequence[float]) -> list[float]:
    """Returns what each vote weighs by its score: the score itself, or exponentials.

    If one score is negative, as logits and log-probabilities are, the weights are the exponentials of all. If
    float64 cannot hold the largest exponential, as for sums of many log-probabilities, all are taken relative
    to it, which changes no vote's share.
    """
    if min(scores, default=0) >= 0:
        return list(scores)
    top = max(scores)
    return [math.exp(score - top if abs(top) > _REPRESENTED else score) for score in scores]
