"""A sweep's estimates for each setting: how often it is right, and how often rules over k samples are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..select import AtK, Interval, majority_at_k, naive_at_k, pass_at_k, vote_weights, weighted_at_k
from .intervals import mean_interval
from .searches import Sample, Search, by_problem, by_setting


@dataclass(frozen=True)
class Estimate:
    """One figure of a setting, a mean over problems.

    Attributes:
        measure: "solved", by the strategy's own choice, or "pass", "maj", "weighted", "naive".
        k: samples that the rule chooses from; None for "solved".
        interval: 95 % interval over the problems, by `method` (`mean_interval`).
        error: standard error of the value from drawing subsets of samples; 0 if all were counted.
        problems, searches: numbers that the mean is over.
        fewer: searches with fewer than k samples, of which all were used; one without any counts as wrong.
    """

    strategy: str
    width: int
    sparse: bool
    measure: str
    k: int | None
    interval: Interval
    method: str
    error: float
    problems: int
    searches: int
    fewer: int = 0

    @property
    def name(self) -> str:
        """Name such as `maj@4`."""
        return self.measure if self.k is None else f"{self.measure}@{self.k}"


Rule = Callable[[Sequence[Sample], int], AtK]


def estimates(searches: Sequence[Search], ks: Sequence[int] | None = None) -> list[Estimate]:
    """Returns the estimates of each setting (strategy, width, sparse or not), in the order of appearance.

    They are the accuracy of its choice, then pass@k, maj@k, weighted@k and naive@k.

    Args:
        ks: default: the powers of 2 up to the width, and the width.

    Each is a mean over the problems of the mean over seeds. weighted@k and naive@k need scores, and are left
    out if no sample has one. An estimate predicts a search with k samples only if the candidates are
    independent samples, as in best-of-n.
    """
    return [found for group in by_setting(searches).values() for found in _of_setting(group, ks)]


def _of_setting(searches: Sequence[Search], ks: Sequence[int] | None) -> Iterator[Estimate]:
    problems = by_problem(searches)
    strategy, width, sparse = searches[0].setting

    def made(measure: str, k: int | None, values: list[float], error: float = 0.0) -> Estimate:
        interval, method = mean_interval(values)
        fewer = 0 if k is None else sum(len(search.samples) < k for search in searches)
        counts = len(problems), len(searches), fewer
        return Estimate(strategy, width, sparse, measure, k, interval, method, error, *counts)

    yield made("solved", None, [_mean([float(s.solved) for s in group]) for group in problems])
    scored = any(sample.score is not None for search in searches for sample in search.samples)
    for measure, rule in _RULES.items():
        if measure in _NEED_SCORES and not scored:
            continue
        for k in _powers(width) if ks is None else ks:
            found = [[_at(rule, search, k) for search in group] for group in problems]
            errors = [value.error / len(group) for group in found for value in group]
            error = math.hypot(*errors) / len(problems)
            yield made(measure, k, [_mean([value.value for value in group]) for group in found], error)


def _at(rule: Rule, search: Search, k: int) -> AtK:
    size = min(k, len(search.samples))
    return rule(search.samples, size) if size else AtK(0.0)


def _pass(samples: Sequence[Sample], k: int) -> AtK:
    return AtK(pass_at_k(len(samples), sum(sample.correct for sample in samples), k))


def _majority(samples: Sequence[Sample], k: int) -> AtK:
    return majority_at_k([s.answer for s in samples], [s.correct for s in samples], k)


def _weighted(samples: Sequence[Sample], k: int) -> AtK:
    """Estimates the weighted vote; a sample without a score has no weight."""
    known = [i for i, sample in enumerate(samples) if sample.score is not None]
    weights = [0.0] * len(samples)
    for i, weight in zip(known, vote_weights([samples[i].score or 0.0 for i in known]), strict=True):
        weights[i] = weight
    return weighted_at_k([s.answer for s in samples], weights, [s.correct for s in samples], k)


def _naive(samples: Sequence[Sample], k: int) -> AtK:
    """Estimates best-of-k; a sample that was cut off ranks below those that reached their end."""
    scores = [None if sample.answer is None else sample.score for sample in samples]
    return naive_at_k(scores, [sample.correct for sample in samples], k)


_RULES: dict[str, Rule] = {"pass": _pass, "maj": _majority, "weighted": _weighted, "naive": _naive}
_NEED_SCORES = ("weighted", "naive")


def _powers(width: int) -> list[int]:
    return sorted({2**i for i in range(width.bit_length())} | {width})


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
