"""The model's own confidence as a probability: the geometric mean of its tokens' probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..core.interfaces import Branch
    from .scorer import Scorer


def mean_probability() -> Scorer:
    """Scorer: geometric mean of the probabilities of a branch's generated tokens, in [0, 1].

    It is 1 before the first token. This is the inverse perplexity: it ranks like `mean_logprob`, on the scale
    expected by the softmax temperatures of published searches and by strategies that read scores as
    probabilities. It needs no forward pass.
    """

    async def mean_probability(branches: Sequence[Branch]) -> list[float]:
        return [math.exp(math.fsum(b.logprobs) / max(len(b.logprobs), 1)) for b in branches]

    return mean_probability
