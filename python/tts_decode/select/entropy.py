"""Where a sampled text could have gone another way: the tokens at which the model was least sure."""

from __future__ import annotations

import math
from collections.abc import Sequence


def fork_points(entropies: Sequence[float], k: int) -> list[int]:
    """Indices of the `k` highest entropies (all if there are fewer), highest first, ties to the lower index.

    NaN, the entropy that an engine does not tell, is never taken.

    Liu et al., "ETTRL: Balancing Exploration and Exploitation in LLM Test-Time Reinforcement Learning Via
    Entropy Mechanism", arXiv 2508.11356: the fork points of its tree rollouts.
    """
    if k < 0:
        raise ValueError(f"k: got {k}, expected at least 0")
    known = [i for i, entropy in enumerate(entropies) if not math.isnan(entropy)]
    return sorted(known, key=lambda i: -entropies[i])[:k]
