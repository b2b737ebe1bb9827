"""How confident a weighted vote is."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .scores import require_finite


def vote_confidence(votes: Sequence[float]) -> float:
    """Returns 2 (1 - sigmoid(H)) for the entropy H, nats, of the vote shares: 1 if all votes agree.

    Chen et al., MAgICoRe, arXiv 2409.12147, as in its code. votes: one non-negative number per answer, at any
    scale; all 0 count as equal. Without votes it is 0.
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
