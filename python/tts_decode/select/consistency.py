"""How settled a vote is, and how much confidence or consistency makes each vote weigh."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from tts_kernels.checks import number

from ..extras import require
from .scores import require_finite


def majority_probability(counts: Sequence[int], criterion: Literal["beta", "dirichlet"] = "beta") -> float:
    """Returns the probability that the most frequent answer is the most probable one, given the counts.

    Aggarwal et al., arXiv 2305.11860, section 2: under a uniform prior the shares of the answers have a
    Dirichlet posterior with parameters counts + 1. "dirichlet" compares the first answer with all others;
    "beta" only with the second one, whose count is 0 if there is none. Without counts it is 0.
    """
    if any(count < 0 for count in counts):
        raise ValueError(f"counts: got {list(counts)}, expected no negative count")
    if criterion not in ("beta", "dirichlet"):
        raise ValueError(f"criterion: got {criterion!r}, expected 'beta' or 'dirichlet'")
    ranked = sorted(counts, reverse=True)
    if not ranked:
        return 0.0
    if criterion == "beta" or len(ranked) < 3:
        first, second = ranked[0], ranked[1] if len(ranked) > 1 else 0
        tosses = first + second + 1  # P(Beta(a + 1, b + 1) > 1/2) = P(Binomial(a + b + 1, 1/2) <= a)
        return math.fsum(math.comb(tosses, i) / 2**tosses for i in range(first + 1))
    require("scipy")
    from scipy import integrate, special

    # Shares are gamma variables over their sum, so the largest share is the largest gamma variable. The
    # integrand over the first one's quantiles is the product of the others' distribution functions.
    def others_below(quantile: float) -> float:
        first = special.gammaincinv(ranked[0] + 1, quantile)
        return math.prod(float(special.gammainc(count + 1, first)) for count in ranked[1:])

    return float(integrate.quad(others_below, 0.0, 1.0, limit=200)[0])


def agreement(answers: Sequence[str | None]) -> float:
    """Returns the share of the most frequent answer among those given; 0 if all abstain (None)."""
    given = [answer for answer in answers if answer is not None]
    return max((given.count(answer) for answer in given), default=0) / max(len(given), 1)


def consistency_weight(answers: Sequence[str | None]) -> float:
    """Returns the weight of a model's votes, by how much its own k answers agree.

    It is 1 if all are the same, 1/k if no two are, and linear in their entropy between. Chen et al., arXiv
    2504.00762 (the internal weight of ModelSwitch's vote). Answers of None abstain.
    """
    given = [answer for answer in answers if answer is not None]
    counts = [given.count(answer) for answer in dict.fromkeys(given)]
    if len(counts) < 2:
        return 1.0
    entropy = -math.fsum(count / len(given) * math.log(count / len(given)) for count in counts)
    least = 1 / len(given)
    return least + (1 - least) * (1 - entropy / math.log(len(given)))


def borda_weights(scores: Sequence[float], power: float = 1.0) -> list[float]:
    """Returns (N - rank) ** power for each of N scores, rank 0 for the largest; ties go to the lower index.

    Kang et al., "Scalable Best-of-N Selection for Large Language Models via Self-Certainty", arXiv
    2502.18581, section 4: power 0 is a majority vote; a large power lets the most confident sample decide.
    """
    require_finite("scores", scores)
    number("power", power, low=0)
    ranked = sorted(range(len(scores)), key=lambda i: -scores[i])
    rank = {index: position for position, index in enumerate(ranked)}
    return [float((len(scores) - rank[i]) ** power) for i in range(len(scores))]
