"""Intervals for a mean over problems."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..extras import require
from ..select import Interval, wilson_interval

_RESAMPLES = 1_999  # without bias, the ends of 95 % are then the 50th and the 1,950th


class MeanInterval(NamedTuple):
    """method: "wilson", "bca", or "none" if the problems do not tell how far off the mean may be."""

    interval: Interval
    method: str


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> MeanInterval:
    """Returns the mean of one number per problem, in [0, 1], with an interval for similar problems.

    If all are 0 or 1 they are a proportion, and the interval is Wilson's: a bootstrap of right and wrong
    answers has no width if all problems are alike, and is too narrow for few. Otherwise it is the
    bias-corrected and accelerated bootstrap over the problems (Efron, "Better Bootstrap Confidence
    Intervals", JASA 82 (1987); scipy.stats.bootstrap), from 1,999 resamples of a fixed seed, because the
    shares of a problem follow no known distribution. The ends are NaN for fewer than two problems and for
    equal values.
    """
    if not len(values):
        raise ValueError("values: got none, expected one for each of at least one problem")
    for i, value in enumerate(values):
        if not 0 <= value <= 1:
            raise ValueError(f"values[{i}]: got {value}, expected a number from 0 to 1")
    if all(value in (0, 1) for value in values):
        return MeanInterval(wilson_interval(round(sum(values)), len(values), confidence), "wilson")
    mean = math.fsum(values) / len(values)
    if max(values) - min(values) <= 1e-12:
        return MeanInterval(Interval(mean, math.nan, math.nan), "none")
    require("scipy")
    from scipy.stats import bootstrap

    found = bootstrap(
        (np.asarray(values, dtype=np.float64),),
        np.mean,
        confidence_level=confidence,
        n_resamples=_RESAMPLES,
        method="BCa",
        random_state=np.random.default_rng(0),
    ).confidence_interval
    return MeanInterval(Interval(mean, float(found.low), float(found.high)), "bca")
