"""Which of several generators makes the next answer: bandits over the scores of their answers."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from .thompson import Posterior, generate_or_continue, thompson


def thompson_generator(seen: Sequence[Sequence[float]], prior: Posterior, rng: random.Random) -> int:
    """Returns the generator with the best posterior draw. seen: scores in the whole tree by generator."""
    return thompson([prior.given(scores) for scores in seen], rng) if len(seen) > 1 else 0


def ucb_generator(seen: Sequence[Sequence[float]]) -> int:
    """Returns the generator with the highest bound, mean + sqrt(2 ln(all) / its count).

    One without scores comes first. Ties go to the lower index.
    """
    total = sum(len(scores) for scores in seen)
    bounds = [
        math.fsum(scores) / len(scores) + math.sqrt(2 * math.log(total) / len(scores)) if scores else math.inf
        for scores in seen
    ]
    return max(range(len(bounds)), key=bounds.__getitem__)


def stacked_choice(
    children: Sequence[Sequence[float]],
    made_by: Sequence[int],
    generators: int,
    prior: Posterior,
    rng: random.Random,
) -> tuple[int | None, int]:
    """Draws a generator first, then GEN or CONT among its own children: returns (child or None, generator).

    A generator's posterior includes all scores of its children and below them.

    Args:
        children: for each, its own score first, then those below it.
        made_by: the generator of each.
    """
    own = [[i for i, maker in enumerate(made_by) if maker == g] for g in range(generators)]
    seen = [[score for i in group for score in children[i]] for group in own]
    generator = thompson_generator(seen, prior, rng)
    child = generate_or_continue([children[i] for i in own[generator]], prior, rng)
    return (None if child is None else own[generator][child]), generator
