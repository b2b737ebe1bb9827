"""Bandits over budgets: which question gets the next samples, and which settings stay in the running."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Literal

from .scores import require_finite
from .thompson import Beta, thompson
from .uct import uct

ExplorationRule = Literal["uniform", "ucb", "thompson"]
"""The rule by which a bandit chooses what to sample next."""
EXPLORATION_RULES: tuple[ExplorationRule, ...] = ("uniform", "ucb", "thompson")
"""All rules."""


def next_question(
    rewards: Sequence[Sequence[float]],
    rule: ExplorationRule = "ucb",
    *,
    exploration: float = 1.0,
    rng: random.Random | None = None,
) -> int:
    """Returns the index of the question to sample next, given the rewards of each so far.

    Questions without rewards come first, in order. Then, by `rule`:

    "uniform"   the one with the fewest samples.
    "ucb"       the highest upper confidence bound of its mean reward, `uct` with `exploration`: among
    questions
                that no sample has solved, those that come close are sampled further.
    "thompson"  the best of one draw from each posterior (`Beta`), for rewards in [0, 1]; needs `rng`.

    Ties go to the first.
    """
    if not rewards:
        raise ValueError("rewards: got no questions, expected one or more")
    for index, seen in enumerate(rewards):
        if not seen:
            return index
    counts = [len(seen) for seen in rewards]
    if rule == "uniform":
        return counts.index(min(counts))
    if rule == "thompson":
        if rng is None:
            raise ValueError('rng: got None, expected a random.Random for rule="thompson"')
        return thompson([Beta().given(seen) for seen in rewards], rng)
    if rule != "ucb":
        raise ValueError(f"rule: got {rule!r}, expected one of {', '.join(EXPLORATION_RULES)}")
    means = [math.fsum(seen) / len(seen) for seen in rewards]
    bounds = uct(means, counts, sum(counts), exploration)
    return bounds.index(max(bounds))


def halving_rounds(arms: int, pulls: int) -> list[tuple[int, int]]:
    """Returns the rounds of successive halving with `pulls` pulls in total: (remaining arms, pulls of each).

    Karnin et al., "Almost Optimal Exploration in Multi-Armed Bandits", ICML 2013: ceil(log2(arms)) rounds
    share the pulls evenly, and after each round the best half of the arms, rounded up, continues.

    Raises:
        ValueError: there is no arm, or a round would pull an arm less than once.
    """
    if arms < 1:
        raise ValueError(f"arms: got {arms}, expected at least 1")
    rounds = max(1, math.ceil(math.log2(arms)))
    if pulls < arms * rounds:
        raise ValueError(
            f"pulls: got {pulls} for {arms} arms, expected at least {arms * rounds}: one of each arm in each "
            f"of {rounds} rounds"
        )
    plan = []
    for _ in range(rounds):
        plan.append((arms, pulls // (arms * rounds)))
        arms = -(-arms // 2)
    return plan


def better_half(values: Sequence[float]) -> list[int]:
    """Returns the indices of the larger half of the values, rounded up, ascending; among equals the first."""
    require_finite("values", values)
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    return sorted(order[: -(-len(values) // 2)])
