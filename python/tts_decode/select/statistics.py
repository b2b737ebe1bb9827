"""Intervals for what is measured on a set of problems: accuracies, their differences, ratios of costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from tts_decode.select.scores import require_finite

_ROUNDS = 10_000  # resamples; the interval's ends then vary by about 1 % of its width from seed to seed
_CHUNK = 1 << 22  # numbers drawn at a time


class Interval(NamedTuple):
    """An estimate and the ends of its confidence interval."""

    value: float
    low: float
    high: float


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """The share of successes, with Wilson's score interval.

    Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 22 (1927). Holds for
    few trials and for shares near 0 and 1, where a bootstrap of equal values has no width.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"successes={successes} of trials={trials}; expected 0..trials of at least 1")
    z = NormalDist().inv_cdf((1 + _checked(confidence)) / 2)
    share = successes / trials
    scale = 1 + z * z / trials
    middle = (share + z * z / (2 * trials)) / scale
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials)) / scale
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half))


def paired_difference(
    ours: Sequence[float],
    theirs: Sequence[float],
    *,
    confidence: float = 0.95,
    rounds: int = _ROUNDS,
    seed: int = 0,
) -> Interval:
    """mean(ours) - mean(theirs) over the same problems, with a paired bootstrap interval (percentiles).

    ours, theirs: one number a problem, such as 1 for solved and 0 for not; entry i of both is problem i.
    Problems are drawn with replacement, `rounds` times from `seed`. Efron and Tibshirani, "An Introduction
    to the Bootstrap" (1993), chapter 13. Two methods that agree on every problem give an interval of no
    width: it says what resampling these problems can change, nothing of problems unlike them.
    """
    differences = np.subtract(*_pairs(ours, theirs))
    return _bootstrap(differences, float, confidence, rounds, seed)


def geometric_mean_ratio(
    ours: Sequence[float],
    theirs: Sequence[float],
    *,
    confidence: float = 0.95,
    rounds: int = _ROUNDS,
    seed: int = 0,
) -> Interval:
    """exp(mean(log(ours / theirs))) over the same problems, with a paired bootstrap interval (percentiles).

    ours, theirs: one positive number a problem, such as bytes or seconds.
    """
    pairs = _pairs(ours, theirs)
    for name, values in zip(("ours", "theirs"), pairs, strict=True):
        if (values <= 0).any():
            i = int(np.argmax(values <= 0))
            raise ValueError(f"{name}[{i}] is {values[i]}; expected a positive number")
    return _bootstrap(np.log(pairs[0]) - np.log(pairs[1]), math.exp, confidence, rounds, seed)


def _pairs(
    ours: Sequence[float], theirs: Sequence[float]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    if len(ours) != len(theirs) or len(ours) == 0:
        raise ValueError(
            f"{len(ours)} numbers in ours and {len(theirs)} in theirs; expected one each a problem, "
            "for at least one problem"
        )
    require_finite("ours", ours)
    require_finite("theirs", theirs)
    return np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)


def _bootstrap(
    values: np.ndarray[Any, Any],
    unit: Callable[[float], float],
    confidence: float,
    rounds: int,
    seed: int,
) -> Interval:
    """The mean of `values` and percentiles of resampled means, each put through `unit`, which rises."""
    tail = (1 - _checked(confidence)) / 2
    if rounds < 1:
        raise ValueError(f"rounds={rounds}; expected at least 1")
    rng = np.random.default_rng(seed)
    chunk = max(1, _CHUNK // len(values))
    means = np.concatenate(
        [
            values[rng.integers(len(values), size=(min(chunk, rounds - done), len(values)))].mean(axis=1)
            for done in range(0, rounds, chunk)
        ]
    )
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(unit(float(values.mean())), unit(float(low)), unit(float(high)))


def _checked(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}; expected a number between 0 and 1")
    return confidence
