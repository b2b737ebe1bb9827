"""Confidence of a sampled text, from how peaked the model's distribution was at each of its tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tts_kernels.checks import integer

from .scores import require_finite

MEASURES = ("lowest", "bottom", "tail", "mean")
"""The measures of `trace_confidence`."""


def group_confidences(confidences: Sequence[float], window: int) -> list[float]:
    """Returns the means over every run of `window` consecutive tokens, in order.

    With fewer tokens it is one mean; without tokens, none. The groups of Fu et al., arXiv 2508.15260, section
    2.

    Args:
        confidences: one per token.
    """
    integer("window", window, 1)
    require_finite("confidences", confidences)
    if not len(confidences):
        return []
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(confidences, np.float64))])
    width = min(window, len(confidences))
    means: list[float] = ((sums[width:] - sums[:-width]) / width).tolist()
    return means


def trace_confidence(confidences: Sequence[float], measure: str, window: int) -> float:
    """Returns one number for a text; 0 if it has no token.

    Args:
        confidences: one per token.
        measure: "lowest": the lowest group (`group_confidences`); "bottom": the mean of the lowest tenth of
            the groups, at least one; "tail": the mean over the last `window` tokens; "mean": over all.
        window: tokens of a group.
    """
    groups = group_confidences(confidences, window)
    if not groups:
        return 0.0
    if measure == "lowest":
        return min(groups)
    if measure == "bottom":
        lowest = sorted(groups)[: max(1, len(groups) // 10)]
        return sum(lowest) / len(lowest)
    if measure == "tail":
        return groups[-1]
    if measure == "mean":
        return sum(confidences) / len(confidences)
    raise ValueError(f"measure: got {measure!r}, expected one of {', '.join(MEASURES)}")


def top_percent_bar(confidences: Sequence[float], percent: float) -> float:
    """Returns the confidence that the highest `percent` percent reach.

    That is the (100 - percent)-th percentile, interpolated between neighbours.
    """
    require_finite("confidences", confidences)
    return float(np.percentile(np.asarray(confidences, np.float64), 100 - percent))
