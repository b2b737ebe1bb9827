"""How sure a weighted vote is of itself."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .scores import require_finite


def vote_confidence(votes: Sequence[float]) -> float:
    """2 (1 - sigmoid(H)) for the entropy H, nats, of the shares of the votes: 1 if all are for one answer.

    Chen et al., MAgICoRe, arXiv 2409.12147, as in its code. votes: one non-negative number an
    answer, their scale does not matter; all 0 count as equal. None at all give 0.
    """
    require_finite("votes", votes)
    if any(weight < 0 for weight in votes):
        raise ValueError(f"votes: got {list(votes)}, expected no negative number")
    if not votes:
        return 0.0
    total = math.fsum(votes)
    shares = [weight / total for weight in votes] if total else [1 / len(votes)] * len(votes)
    entropy = -math.fsum(share * math.log(share) for share in shares if share)
    return 2 / (1 + math.exp(entropy))
