"""Intervals for a mean over problems."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..extras import require
from ..select import Interval, wilson_interval

_RESAMPLES = 1_999  # the ends of 95 % are then the 50th and the 1,950th, were there no bias


class MeanInterval(NamedTuple):
    """method: "wilson", "bca", or "none" where the problems do not tell how far the mean may be off."""

    interval: Interval
    method: str


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> MeanInterval:
    """The mean of one number a problem, each in [0, 1], with an interval for other problems like these.

    Where all are 0 or 1 they are a proportion, and the interval is Wilson's: a bootstrap of right and wrong
    answers has no width where all problems are alike, and is too narrow for few. Otherwise it is the
    bias-corrected and accelerated bootstrap's over the problems (Efron, "Better Bootstrap Confidence
    Intervals", JASA 82 (1987); scipy.stats.bootstrap), from 1,999 resamples of a fixed seed, as the shares of
    a problem follow no known distribution. The ends are NaN for fewer than two problems and for values that
    are all the same.
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
