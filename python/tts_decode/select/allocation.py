"""How many continuations each node gets: REBASE weights and their allocation in whole numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from tts_kernels.checks import number

from .scores import require_finite


def rebase_weights(scores: Sequence[float], softmax_temperature: float = 0.2) -> list[float]:
    """softmax(scores / softmax_temperature): each node's share of the search width. Sums to 1.

    The balancing rule of REBASE (Wu et al., "Inference Scaling Laws", arXiv 2408.00724), whose code takes a
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
    """Split `width` continuations over nodes in proportion to `weights`: whole numbers that sum to `width`.

    Largest remainder in exact rational arithmetic: node i gets floor(width * w_i / sum(w)), and the units
    left over go to the largest fractional parts, ties to the lower index. So equal weights differ by at most
    one, and the earliest nodes hold the extra unit.

    The published REBASE code walks the nodes by falling score and takes ceil(width_left * w_i / sum_left) in
    float64; its rounding residue gives 16 equal scores at width 16 the split [1 x 5, 2, 1 x 9, 0].
    """
    if width < 0:
        raise ValueError(f"width: got {width}, expected 0 or more")
    require_finite("weights", weights)
    if any(w < 0 for w in weights):
        raise ValueError(f"weights: got {list(weights)}, expected no negative weight")
    total = sum((Fraction(w) for w in weights), Fraction(0))
    if total == 0:
        raise ValueError(f"weights: got {list(weights)}, expected at least one positive weight")
    quotas = [width * Fraction(w) / total for w in weights]
    counts = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda i: counts[i] - quotas[i])
    for i in by_remainder[: width - sum(counts)]:
        counts[i] += 1
    return counts
