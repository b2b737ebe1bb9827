"""Combines several scorers into one."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .scorer import Scorer, check_scorer, score_branches

if TYPE_CHECKING:
    from ..core.interfaces import Branch


def ensemble(*scorers: Scorer) -> Scorer:
    """Scorer: the mean of several scorers, run concurrently.

    Verifiers with independent errors err less together (Wang et al., arXiv 2502.11183, section 4). Their
    scales should be the same.

    Raises ValueError without a scorer, TypeError for anything that is no scorer.
    """
    if not scorers:
        raise ValueError("scorers: got nothing, expected at least one scorer")
    for scorer in scorers:
        check_scorer(scorer)

    async def ensemble(branches: Sequence[Branch]) -> list[float]:
        rows = await asyncio.gather(*(score_branches(scorer, branches) for scorer in scorers))
        return [math.fsum(column) / len(scorers) for column in zip(*rows, strict=True)]

    return ensemble
