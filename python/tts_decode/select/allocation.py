"""Allocates continuations to nodes: REBASE weights, and their split into whole numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

from tts_kernels.checks import number

from .scores import require_finite


def rebase_weights(scores: Sequence[float], softmax_temperature: float = 0.2) -> list[float]:
    """Returns softmax(scores / softmax_temperature): each node's share of the search width. Sums to 1.

    The balancing rule of REBASE (Wu et al., "Inference Scaling Laws", arXiv 2408.00724), whose code uses a
    temperature of 0.2 for scores in [0, 1].
    """
    number("softmax_temperature", softmax_temperature, above=0)
    if not scores:
        raise ValueError("scores: got nothing, expected at least one")
    require_finite("scores", scores)
    top = max(scores)
    exps = [math.exp((score - top) / softmax_temperature) for score in scores]
    total = math.fsum(exps)
    return [e / total for e in exps]


def allocate(width: int, weights: Sequence[float]) -> list[int]:
    """Splits `width` continuations over nodes in proportion to `weights`: whole numbers that sum to `width`.

    Largest remainder in exact rational arithmetic: node i gets floor(width * w_i / sum(w)), and the remaining
    units go to the largest fractional parts, ties to the lower index. So equal weights differ by at most one,
    and the earliest nodes hold the extra unit.
    """
    shares = _shares(width, weights)
    total = sum(shares, Fraction(0))
    quotas = [width * share / total for share in shares]
    counts = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda i: counts[i] - quotas[i])
    for i in by_remainder[: width - sum(counts)]:
        counts[i] += 1
    return counts


def walk_ceilings(width: int, weights: Sequence[float]) -> list[int]:
    """Splits `width` as REBASE's code does, and ETS's code after it: whole numbers that sum to `width`.

    Each node, by descending weight, gets ceil(remaining width * w_i / sum of the remaining weights), ties to
    the lower index. The later nodes pay for each ceiling, so the tail gets nothing: scores of .70, .68 ...
    .56 at width 8 and temperature 0.2 give 2, 2, 1, 1, 1, 1, 0, 0, where `allocate` gives one each.

    Uses exact rational arithmetic. The published code uses float32, whose residue can give a node one more,
    also beyond `width`, or one of several equal nodes two and the last none; among equal nodes it serves the
    last first.
    """
    shares = _shares(width, weights)
    counts = [0] * len(shares)
    left = sum(shares, Fraction(0))
    for i in sorted(range(len(shares)), key=lambda i: -shares[i]):
        if not width:
            break
        counts[i] = math.ceil(width * shares[i] / left)
        width -= counts[i]
        left -= shares[i]
    return counts


ALLOCATIONS: dict[str, Callable[[int, Sequence[float]], list[int]]] = {
    "published": walk_ceilings,
    "exact": allocate,
}
"""The values of the option `allocation` of `rebase` and `ets`."""


def _shares(width: int, weights: Sequence[float]) -> list[Fraction]:
    """Returns the weights as exact numbers; raises ValueError if they cannot divide anything."""
    if width < 0:
        raise ValueError(f"width: got {width}, expected 0 or more")
    require_finite("weights", weights)
    if any(w < 0 for w in weights):
        raise ValueError(f"weights: got {list(weights)}, expected no negative weight")
    if not any(weights):
        raise ValueError(f"weights: got {list(weights)}, expected at least one positive weight")
    return [Fraction(w) for w in weights]
