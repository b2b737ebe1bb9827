"""The scorer interface, and the one place where what a scorer returned is checked."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tts_decode.branch import Branch

    Scorer = Callable[[Sequence[Branch]], Awaitable[Sequence[float]]]
    """Scores branches as they stand, in order; leaves them and the KV cache as they were."""
else:
    Scorer = Callable


async def score_branches(scorer: Scorer, branches: Sequence[Branch]) -> list[float]:
    """One finite float a branch, in order; else ValueError that names the scorer and the branch."""
    name = getattr(scorer, "__name__", type(scorer).__name__)
    scores = [float(score) for score in await scorer(branches)]
    if len(scores) != len(branches):
        raise ValueError(
            f"scorer {name} returned {len(scores)} scores for {len(branches)} branches; expected one each"
        )
    for branch, score in zip(branches, scores, strict=True):
        if not math.isfinite(score):
            raise ValueError(
                f"scorer {name} gave branch {branch.id} the score {score}; expected a finite number"
            )
    return scores
