"""Draws which particles or beams continue, in proportion to weights computed from their scores."""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from tts_kernels.checks import number

from .allocation import rebase_weights
from .scores import require_finite

_EPSILON = 1e-7  # from its_hub: scores are kept this far from 0 and 1


def logit(score: float) -> float:
    """Returns log(p / (1 - p)) of a score, with p first moved 1e-7 away from 0 and 1.

    p is the score, for example a process reward model's; a negative score is a log-probability
    (`mean_logprob`), and p its exponential.
    """
    if not score <= 1:
        raise ValueError(f"score: got {score}, expected a probability or a log-probability, at most 1")
    p = min(max(score if score >= 0 else math.exp(score), _EPSILON), 1 - _EPSILON)
    return math.log(p / (1 - p))


def particle_weights(scores: Sequence[float], softmax_temperature: float = 1.0) -> list[float]:
    """Returns softmax(logit(scores) / softmax_temperature): weights of particles, summing to 1.

    Puri et al., arXiv 2502.01618, section 3: the logit undoes the sigmoid of a process reward model.
    """
    return rebase_weights([logit(score) for score in scores], softmax_temperature)


def effective_sample_size(weights: Sequence[float]) -> float:
    """Returns 1 / sum of squares of normalised weights: 1 if one has all the weight, N if all N are equal."""
    total = _total(weights)
    return total**2 / math.fsum(w * w for w in weights)


def annealed_temperature(
    weights: Sequence[float], progress: float, ess_threshold: float = 0.5, early_phase: float = 0.5
) -> float:
    """Returns the divisor of log-weights that keeps early resampling diverse; 1 leaves them unchanged.

    Entropic annealing of Giannone et al., arXiv 2510.05825, in the form that its_hub runs by default: while
    `progress` (steps taken / step limit) is below `early_phase` and the effective sample size, as a share of
    the particles, is below `ess_threshold`, it is (1 - progress) / share, at least 1.
    """
    share = effective_sample_size(weights) / len(weights)
    if len(weights) < 2 or share >= ess_threshold or progress >= early_phase:
        return 1.0
    return max(1.0, (1 - progress) / share)


def multinomial(weights: Sequence[float], n: int, rng: random.Random) -> list[int]:
    """Draws `n` indices independently in proportion to `weights`."""
    _total(weights)
    return rng.choices(range(len(weights)), weights=weights, k=n)


def systematic(weights: Sequence[float], n: int, rng: random.Random) -> list[int]:
    """Draws `n` ascending indices: index i floor(n w_i) or ceil(n w_i) times, w normalised, n w_i on average.

    One uniform number shifts a comb of n equally spaced points over the cumulative weights.
    """
    total = _total(weights)
    ends = list(accumulate(weights))
    last = max(i for i, w in enumerate(weights) if w > 0)  # a point may round to the very end
    offset = rng.random()
    return [min(bisect_right(ends, (i + offset) / n * total), last) for i in range(n)]


def sample_top_k(
    scores: Sequence[float], k: int, softmax_temperature: float, rng: random.Random
) -> list[int]:
    """Draws `k` distinct indices (or all) without replacement, by softmax(scores / softmax_temperature).

    Uses the Gumbel top-k trick (Kool et al., arXiv 1903.06059), which has the distribution of drawing one at
    a time. Unlike exponentials, it has no score that underflows to weight 0. The indices are in the order of
    the draws.
    """
    if k < 1:
        raise ValueError(f"k: got {k}, expected at least 1")
    number("softmax_temperature", softmax_temperature, above=0)
    require_finite("scores", scores)
    keys = [score / softmax_temperature - math.log(rng.expovariate(1.0) or 5e-324) for score in scores]
    return sorted(range(len(keys)), key=lambda i: -keys[i])[:k]


def _total(weights: Sequence[float]) -> float:
    require_finite("weights", weights)
    if any(w < 0 for w in weights) or not any(weights):
        raise ValueError(f"weights: got {list(weights)}, expected none negative and at least one positive")
    return math.fsum(weights)
