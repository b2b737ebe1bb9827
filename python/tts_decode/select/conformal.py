"""Conformal tests, and the plain percentile: is a score as good as those seen so far?"""

from __future__ import annotations

from collections.abc import Sequence

from tts_kernels.checks import number

from .scores import require_finite


def conformal_p_value(score: float, calibration: Sequence[float]) -> float:
    """Returns (1 + number of calibration scores >= `score`) / (1 + their number); large scores are odd.

    If the score and the calibration scores are exchangeable, then P(p <= alpha) <= alpha for every alpha, and
    this probability is above alpha - 1 / (1 + len(calibration)) if scores do not tie. Vovk, Gammerman and
    Shafer, "Algorithmic Learning in a Random World", 2005, chapter 2.
    """
    require_finite("score", [score])
    at_least = sum(other >= score for other in calibration)
    return (1 + at_least) / (1 + len(calibration))


def percentile_rank(score: float, calibration: Sequence[float]) -> float:
    """Returns the share of calibration scores below `score`, in [0, 1]; 0 if there are none."""
    require_finite("score", [score])
    return sum(other < score for other in calibration) / max(len(calibration), 1)


def rejects(score: float, calibration: Sequence[float], alpha: float) -> bool:
    """Whether the score is among the largest, at a rejection rate of at most `alpha`.

    With fewer than 1 / alpha - 1 calibration scores nothing is rejected: they are too few to tell.
    """
    number("alpha", alpha, low=0, below=1)
    return conformal_p_value(score, calibration) <= alpha + 1e-12  # 0.3 may be the quotient 3 / 10 rounded up
