"""What a rule would choose from k of n samples: its accuracy, averaged over all subsets of size k.

If the n samples are independent draws of one distribution, this average is an unbiased estimate of the rule's
accuracy on k fresh samples (Hoeffding, "A Class of Statistics with Asymptotically Normal Distribution",
1948); `coverage.pass_at_k` is this average for the rule "any of them". The rules are named as in Hugging
Face's search-and-learn: Beeching, Tunstall and Rush, "Scaling Test-Time Compute with Open Models", 2024.

Ties go to what was drawn first, a subset's order being random, just as `votes.vote` gives them to the answer
seen first. A vote is right as often as the samples that gave its answer are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from tts_kernels.checks import integer

from .scores import require_finite

MOST_SUBSETS = 20_000
"""Up to this many subsets are enumerated; from more, `DRAWS` are drawn."""
DRAWS = 4_096

MOST_SAMPLES = 1_000
"""Limit of `majority_at_k`: float64 cannot count the subsets of more samples."""

_BLOCK = 1024  # subsets at a time
_TIE = 1e-12  # sums of weights whose relative difference is less are equal up to rounding

Array = np.ndarray[Any, Any]


class AtK(NamedTuple):
    """value: probability that the choice is right. error: standard error from drawing subsets, 0 if exact."""

    value: float
    error: float = 0.0


def majority_at_k(answers: Sequence[object | None], correct: Sequence[bool], k: int) -> AtK:
    """Returns the accuracy of a majority vote of k of the samples: maj@k. Exact, by counting.

    Args:
        answers: one per sample, equal if they mean the same; None abstains. If all of a subset abstain, the
            first one drawn is the choice.
        correct: whether each sample is right.

    An answer that m samples gave has u votes in C(m, u) ways. For a winner with u votes, the polynomial whose
    coefficient of x**v y**r counts the ways to draw v others, of which r answers tie with it, is a product
    over the other answers. Its terms are not negative, so float64 keeps their digits.
    """
    n = _checked(answers, correct, k)
    if n > MOST_SAMPLES:
        raise ValueError(f"answers: got {n}, expected at most {MOST_SAMPLES}")
    groups = _grouped(answers)
    abstain = n - sum(len(members) for members in groups)
    whole = math.comb(n, k)
    none_votes = math.comb(abstain, k) / whole  # every one drawn abstains
    right_of_none = sum(
        bool(right) for answer, right in zip(answers, correct, strict=True) if answer is None
    ) / max(abstain, 1)
    value = none_votes * right_of_none
    for at, members in enumerate(groups):
        share = sum(bool(correct[i]) for i in members) / len(members)
        if share:
            others = [len(group) for i, group in enumerate(groups) if i != at]
            value += share * _wins(len(members), others, abstain, k) / whole
    return AtK(min(value, 1.0))


def _wins(size: int, others: Sequence[int], abstain: int, k: int) -> float:
    """Counts the subsets of k in which an answer of `size` samples wins the vote; with r ties, in part."""
    total = 0.0
    for votes in range(1, min(size, k) + 1):
        left = k - votes
        rivals = [other for other in others if other >= votes]
        free = abstain + sum(others) - sum(rivals)  # samples whose answers cannot reach that many votes
        ways = np.zeros((min(left // votes, len(rivals)) + 1, left + 1))  # [tied others, samples drawn]
        ways[0] = [float(math.comb(free, u)) for u in range(left + 1)]
        for other in rivals:
            grown = np.zeros_like(ways)
            for u in range(min(votes, left) + 1):
                kept = ways[:, : left + 1 - u] * float(math.comb(other, u))
                if u < votes:
                    grown[:, u:] += kept
                else:
                    grown[1:, u:] += kept[:-1]
            ways = grown
        split = 1.0 / (1 + np.arange(len(ways)))
        total += math.comb(size, votes) * float(split @ ways[:, left])
    return total


def weighted_at_k(
    answers: Sequence[object | None],
    weights: Sequence[float],
    correct: Sequence[bool],
    k: int,
    *,
    seed: int = 0,
) -> AtK:
    """Returns the accuracy of a weighted vote of k of the samples: weighted@k.

    The answer with the largest sum of weights wins: best-of-N weighted (Li et al., arXiv 2206.02336). Exact
    if there are at most `MOST_SUBSETS` subsets; otherwise the average over `DRAWS` subsets that `seed` draws,
    with its standard error.

    Args:
        weights: one per sample, not negative, as `vote_weights` makes them from scores. Other arguments as in
            `majority_at_k`.
    """
    n = _checked(answers, correct, k)
    if len(weights) != n:
        raise ValueError(f"weights: got {len(weights)} for {n} answers, expected one each")
    require_finite("weights", weights)
    if min(weights) < 0:
        raise ValueError(f"weights: got {min(weights)}, expected no negative one")
    groups = _grouped(answers)
    right = np.asarray(correct, dtype=np.float64)
    belongs = np.zeros((n, len(groups)))
    for at, members in enumerate(groups):
        belongs[members, at] = 1.0
    exact = math.comb(n, k) <= MOST_SUBSETS
    drawn = _all_subsets(n, k) if exact else _drawn_subsets(n, k, seed)
    values = np.concatenate(
        [
            _weighted_votes(drawn[begin : begin + _BLOCK], belongs, np.asarray(weights), right)
            for begin in range(0, len(drawn), _BLOCK)
        ]
    )
    error = 0.0 if exact else float(values.std(ddof=1)) / math.sqrt(len(values))
    return AtK(float(values.mean()), error)


def _weighted_votes(drawn: Array, belongs: Array, weights: Array, right: Array) -> Array:
    """Returns, for each subset (a row of indices), the probability that its choice is right.

    Args:
        belongs: [n, answers], 1 where a sample gave the answer.
    """
    there = np.zeros((len(drawn), len(right)))
    np.put_along_axis(there, drawn, 1.0, axis=1)
    any_of_them = there @ right / drawn.shape[1]
    if not belongs.shape[1]:
        return np.asarray(any_of_them)
    counts = there @ belongs
    sums = np.where(counts > 0, there @ (belongs * weights[:, None]), -1.0)
    tied = (counts > 0) & (sums >= sums.max(1, keepdims=True) * (1 - _TIE))
    # Among tied answers, the one whose sample was drawn first wins.
    backers = (tied * counts).sum(1)
    right_ones = (tied * (there @ (belongs * right[:, None]))).sum(1)
    return np.asarray(np.where(backers > 0, right_ones / np.maximum(backers, 1), any_of_them))


def naive_at_k(scores: Sequence[float | None], correct: Sequence[bool], k: int) -> AtK:
    """Returns the accuracy of the best-scored of k samples: naive@k, plain best-of-N. Exact, by counting.

    Cobbe et al., arXiv 2110.14168, section 4.

    Args:
        scores: one per sample; None ranks below all.
    """
    n = _checked(scores, correct, k)
    require_finite("scores", [score for score in scores if score is not None])
    levels: dict[float, list[bool]] = {}
    for score, right in zip(scores, correct, strict=True):
        levels.setdefault(-math.inf if score is None else score, []).append(bool(right))
    value, rest = 0.0, n  # rest: samples at this level and below
    whole = math.comb(n, k)
    for level in sorted(levels, reverse=True):
        members = levels[level]
        here = math.comb(rest, k) - math.comb(rest - len(members), k)  # subsets whose best is of this level
        value += here / whole * sum(members) / len(members)
        rest -= len(members)
    return AtK(min(value, 1.0))


def _checked(samples: Sequence[object], correct: Sequence[bool], k: int) -> int:
    integer("k", k, 1)
    if len(correct) != len(samples):
        raise ValueError(f"correct: got {len(correct)} for {len(samples)} samples, expected one each")
    if k > len(samples):
        raise ValueError(f"k: got {k}, expected at most the {len(samples)} samples")
    return len(samples)


def _grouped(answers: Sequence[object | None]) -> list[list[int]]:
    """Returns the indices of the samples of each answer."""
    groups: dict[object, list[int]] = {}
    for index, answer in enumerate(answers):
        if answer is not None:
            groups.setdefault(answer, []).append(index)
    return list(groups.values())


def _all_subsets(n: int, k: int) -> Array:
    return np.array(list(combinations(range(n), k)))


def _drawn_subsets(n: int, k: int, seed: int) -> Array:
    """Draws independent uniform subsets: the k smallest of n random numbers."""
    return np.random.default_rng(seed).random((DRAWS, n)).argpartition(k - 1, axis=1)[:, :k]
