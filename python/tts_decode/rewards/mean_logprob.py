"""The model's own confidence: mean log-probability of what it generated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..core.interfaces import Branch
    from .scorer import Scorer


def mean_logprob() -> Scorer:
    """Scorer: mean log-probability (nats, at most 0) of a branch's generated tokens; 0 before the first one.

    This is the log of the inverse perplexity. It needs no forward pass. Averaging keeps long branches
    comparable with short ones.
    """

    async def mean_logprob(branches: Sequence[Branch]) -> list[float]:
        return [math.fsum(b.logprobs) / max(len(b.logprobs), 1) for b in branches]

    return mean_logprob
