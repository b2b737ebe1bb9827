"""Majority and weighted votes over answers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .scores import require_finite

_REPRESENTED = 600.0  # exp of it is far from the ends of float64, and so are sums of many


def vote(answers: Sequence[str | None], weights: Sequence[float] | None = None) -> dict[str, float]:
    """Votes for each answer, most voted first (ties: the answer seen first). None abstains.

    `weights`, one non-negative number an answer, turns the majority vote into a weighted one.
    Empty if every voter abstains.
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
    """The votes, as `vote` counts them, and the voters who gave the answer that has most of them: indices in
    order, or those of all voters if all abstain."""
    votes = vote(answers, weights)
    winner = next(iter(votes), None)
    return votes, [i for i, answer in enumerate(answers) if answer == winner]


def vote_weights(scores: Sequence[float]) -> list[float]:
    """What a vote weighs by its score: the score; if one is negative, as logits and log-probabilities are,
    the exponentials of all. Where float64 does not hold the largest exponential, as for sums of many
    log-probabilities, all are taken relative to the largest, which changes no vote's share."""
    if min(scores, default=0) >= 0:
        return list(scores)
    top = max(scores)
    return [math.exp(score - top if abs(top) > _REPRESENTED else score) for score in scores]
