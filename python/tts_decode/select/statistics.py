"""Confidence intervals of measurements on a set of problems: accuracies, differences, ratios of costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from tts_kernels.checks import number

from ..extras import require
from .scores import require_finite


class Interval(NamedTuple):
    """An estimate and the ends of its confidence interval.

    The ends are NaN if the data do not tell how far off the estimate may be.
    """

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float | None]:
        """Returns JSON values, with None for what JSON lacks."""
        return {name: end if math.isfinite(end) else None for name, end in self._asdict().items()}


def wilson_interval(successes: float, trials: int, confidence: float = 0.95) -> Interval:
    """Returns the share of successes, with Wilson's score interval.

    Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 22 (1927). Valid for
    few trials and for shares near 0 and 1. successes: a trial that is itself a mean may count in part.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(
            f"successes: got {successes} of {trials} trials, expected 0..trials, and 1 trial or more"
        )
    z = _quantile(confidence)
    share = successes / trials
    scale = 1 + z * z / trials
    middle = (share + z * z / (2 * trials)) / scale
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials)) / scale
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half))


def bootstrap_mean(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Returns the mean, with the bias-corrected and accelerated bootstrap interval (BCa) of 2,000 resamples.

    Use it for skewed values; for few problems, about 20 or less, the interval is too narrow. For one value,
    or equal ones, its ends are NaN. The same values give the same ends. Efron, "Better Bootstrap Confidence
    Intervals", JASA 82 (1987). Needs the package scipy.

    Args:
        values: one number per problem, such as tokens.
    """
    _quantile(confidence)
    if not len(values):
        raise ValueError("values: got none, expected a number each for at least one problem")
    require_finite("values", values)
    data = np.asarray(values, dtype=np.float64)
    mean = float(data.mean())
    if data.max() - data.min() <= 4 * np.finfo(np.float64).eps * np.abs(data).max():
        return Interval(mean, math.nan, math.nan)
    require("scipy")
    from scipy.stats import bootstrap

    found = bootstrap(
        (data,), np.mean, n_resamples=2000, confidence_level=confidence, random_state=0
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high))


def paired_proportion_difference(
    ours: Sequence[float], theirs: Sequence[float], *, confidence: float = 0.95
) -> Interval:
    """Returns mean(ours) - mean(theirs) of outcomes 0 or 1, with Bonett and Price's adjusted Wald interval.

    The interval is the Wald interval around the difference after adding one problem to each kind on which the
    two disagree. So it has a width even if they agree on every problem, and is valid for few problems. Bonett
    and Price, "Adjusted Wald Confidence Interval for a Difference of Binomial Proportions Based on Paired
    Data", Journal of Educational and Behavioral Statistics 37 (2012), pages 479-488. (Neither scipy nor
    statsmodels has it.)

    Args:
        ours, theirs: 1 for right and 0 for wrong; entry i of both is problem i.
    """
    z = _quantile(confidence)
    pairs = _pairs(ours, theirs)
    for name, values in zip(("ours", "theirs"), pairs, strict=True):
        if (wrong := (values != 0) & (values != 1)).any():
            i = int(np.argmax(wrong))
            raise ValueError(f"{name}[{i}]: got {values[i]}, expected 0 or 1")
    differences = np.subtract(*pairs)
    size = len(differences) + 2
    won, lost = (float(np.sum(differences == sign) + 1) / size for sign in (1, -1))
    half = z * math.sqrt((won + lost - (won - lost) ** 2) / size)
    middle = won - lost
    return Interval(float(differences.mean()), max(-1.0, middle - half), min(1.0, middle + half))


def paired_difference(
    ours: Sequence[float], theirs: Sequence[float], *, confidence: float = 0.95
) -> Interval:
    """Returns mean(ours) - mean(theirs) over the same problems, with the interval of Student's paired t.

    Args:
        ours, theirs: one number per problem, such as tokens; entry i of both is problem i. Numbers may be of
            any kind; for 0 and 1, `paired_proportion_difference` is better.

    The interval is exact for normal differences at any number of problems from two on. A bootstrap of few
    problems is too narrow (with two it covers half), and of one, or of equal differences, it has no width, as
    if nothing else could occur. Here the ends of such an interval are NaN. Needs the package scipy.
    """
    return _t_interval(*_pairs(ours, theirs), confidence)


def geometric_mean_ratio(
    ours: Sequence[float], theirs: Sequence[float], *, confidence: float = 0.95
) -> Interval:
    """Returns exp(mean(log(ours / theirs))) over the same problems.

    Its interval is `paired_difference`'s of the logarithms.

    Args:
        ours, theirs: one positive number per problem, such as bytes or seconds. Needs the package scipy.
    """
    pairs = _pairs(ours, theirs)
    for name, values in zip(("ours", "theirs"), pairs, strict=True):
        if (values <= 0).any():
            i = int(np.argmax(values <= 0))
            raise ValueError(f"{name}[{i}]: got {values[i]}, expected a positive number")
    with np.errstate(over="ignore"):
        return Interval(*np.exp(_t_interval(np.log(pairs[0]), np.log(pairs[1]), confidence)).tolist())


def _pairs(
    ours: Sequence[float], theirs: Sequence[float]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    if len(ours) != len(theirs) or len(ours) == 0:
        raise ValueError(
            f"ours: got {len(ours)} numbers beside {len(theirs)} in theirs, expected one each for at "
            "least one problem"
        )
    require_finite("ours", ours)
    require_finite("theirs", theirs)
    return np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)


def _t_interval(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any], confidence: float) -> Interval:
    """Returns the mean difference and Student's interval around it; no ends if all differences are equal."""
    _quantile(confidence)
    values = ours - theirs
    mean = float(values.mean())
    rounding = 4 * np.finfo(np.float64).eps * max(np.abs(ours).max(), np.abs(theirs).max())
    if values.max() - values.min() <= rounding:
        return Interval(mean, math.nan, math.nan)
    require("scipy")
    from scipy.stats import ttest_1samp

    found = ttest_1samp(values, 0.0).confidence_interval(confidence)
    return Interval(mean, float(found.low), float(found.high))


def _quantile(confidence: float) -> float:
    """Returns the standard normal quantile for a two-sided interval."""
    number("confidence", confidence, above=0, below=1)
    return NormalDist().inv_cdf((1 + confidence) / 2)
