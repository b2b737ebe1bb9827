"""Reasoning Pruning: which samples are probable enough to count."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..extras import require
from .scores import require_finite

Floats = npt.NDArray[np.float64]

# Start and bounds of the fit, from the authors' code (WNJXYK/RPC, compute_rpc.py).
_START = (0.5, 1.0, 1.0, 1.5, 2.0)  # weight of the first component; shape and scale of each
_BOUNDS = [(0.2, 0.8), *4 * [(0.01, None)]]


def probable_paths(probabilities: Sequence[float]) -> list[bool]:
    """Returns whether to keep each of N samples, by its probability (0 <= p <= 1).

    Zhou et al., arXiv 2510.15444, section 4.2: a mixture of two Weibull distributions is fitted to the
    probabilities. A sample is dropped if it more likely belongs to the component with the smaller mean and is
    below the average of all. Equal probabilities are all kept.

    Raises:
        ValueError: an entry is no probability.
    """
    require_finite("probabilities", probabilities)
    for i, value in enumerate(probabilities):
        if not 0 <= value <= 1:
            raise ValueError(f"probabilities[{i}]: got {value}, expected 0 to 1")
    x = np.maximum(np.array(probabilities, np.float64), 1e-300)
    if len(x) < 2 or x.min() == x.max():
        return [True] * len(x)
    weight, *shapes = _fit(x)
    low, high = sorted([(weight, *shapes[:2]), (1 - weight, *shapes[2:])], key=lambda c: _mean(*c[1:]))
    improbable = np.log(low[0]) + _log_density(x, *low[1:]) > np.log(high[0]) + _log_density(x, *high[1:])
    return [not drop for drop in (improbable & (x < x.mean())).tolist()]


def _fit(x: Floats) -> list[float]:
    """Returns the maximum-likelihood weight of the first component, then shape and scale of each."""
    require("scipy")
    from scipy import optimize

    def cost(parameters: Floats) -> float:
        weight, k1, scale1, k2, scale2 = parameters
        first = np.log(weight) + _log_density(x, k1, scale1)
        second = np.log1p(-weight) + _log_density(x, k2, scale2)
        return -float(np.logaddexp(first, second).sum())

    with np.errstate(invalid="ignore"):  # far from the optimum both densities may be 0 at a point
        fitted: list[float] = optimize.minimize(cost, _START, bounds=_BOUNDS).x.tolist()
    return fitted


def _log_density(x: Floats, shape: float, scale: float) -> Floats:
    ratio = np.log(x) - np.log(scale)
    with np.errstate(over="ignore"):  # a density of 0
        density: Floats = np.log(shape) - np.log(scale) + (shape - 1) * ratio - np.exp(shape * ratio)
    return density


def _mean(shape: float, scale: float) -> float:
    from scipy import special

    return float(scale * special.gamma(1 + 1 / shape))
