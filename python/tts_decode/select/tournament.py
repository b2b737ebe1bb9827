"""Who wins when answers are compared in pairs."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from .scores import require_finite


def bracket(survivors: Sequence[int]) -> tuple[list[tuple[int, int]], list[int]]:
    """Returns the matches of a knockout round between neighbours, and who advances without one.

    That is the last of an odd number.
    """
    pairs = list(zip(survivors[::2], survivors[1::2], strict=False))
    return pairs, list(survivors[2 * len(pairs) :])


def match_winner(pair: tuple[int, int], preferred: tuple[int, int], rng: Random) -> int:
    """Returns the one that more comparisons of the match prefer; `rng` decides a draw."""
    if preferred[0] == preferred[1]:
        return rng.choice(pair)
    return pair[preferred[1] > preferred[0]]


def within(scores: Sequence[float], margin: float) -> list[int]:
    """Returns the indices of the scores that are at most `margin` below the largest."""
    require_finite("scores", scores)
    if not scores:
        raise ValueError("scores: got nothing, expected at least one")
    least = max(scores) - margin - 1e-9  # shares such as 0.95 and 1 - 0.05 differ in the last bit
    return [i for i, score in enumerate(scores) if score >= least]


def wins_of(n: int, pairs: Sequence[tuple[int, int]], preferred: Sequence[tuple[int, int]]) -> list[float]:
    """Returns the matches won by each of `n`; a draw is half a win for both."""
    wins = [0.0] * n
    for (i, j), (for_i, for_j) in zip(pairs, preferred, strict=True):
        wins[i] += (for_i > for_j) + 0.5 * (for_i == for_j)
        wins[j] += (for_j > for_i) + 0.5 * (for_i == for_j)
    return wins
