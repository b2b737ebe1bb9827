"""Estimates how hard a question is for a model from the scores of a few of its answers."""

from __future__ import annotations

from collections.abc import Sequence

from .scores import require_finite


def difficulty_edges(mean_scores: Sequence[float], bins: int = 5) -> list[float]:
    """Returns the bins - 1 descending boundaries that split questions into equal shares by mean score.

    Args:
        mean_scores: for each question of a calibration set, the mean score of the model's answers to it: the
            model-predicted difficulty of Snell et al., arXiv 2408.03314, section 3.2.
    """
    require_finite("mean_scores", mean_scores)
    if bins < 2 or len(mean_scores) < bins:
        raise ValueError(
            f"bins: got {bins} for {len(mean_scores)} mean_scores, expected 2 or more, and a score each"
        )
    falling = sorted(mean_scores, reverse=True)
    return [falling[-(-i * len(falling) // bins) - 1] for i in range(1, bins)]


def difficulty_bin(mean_score: float, edges: Sequence[float]) -> int:
    """Returns the number of edges above the score: 0 for the easiest bin, len(edges) for the hardest."""
    require_finite("edges", edges)
    if list(edges) != sorted(edges, reverse=True):
        raise ValueError(
            f"edges: got {list(edges)}, expected falling numbers, the easiest bin's lower end first"
        )
    return sum(mean_score < edge for edge in edges)
