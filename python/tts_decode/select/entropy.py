"""The tokens at which the model was least sure, where a sampled text could have gone another way."""

from __future__ import annotations

import math
from collections.abc import Sequence


def fork_points(entropies: Sequence[float], k: int) -> list[int]:
    """Returns the indices of the `k` highest entropies (or all), highest first, ties to the lower index.

    NaN, an entropy that an engine does not report, is never taken.

    Liu et al., "ETTRL: Balancing Exploration and Exploitation in LLM Test-Time Reinforcement Learning Via
    Entropy Mechanism", arXiv 2508.11356: the fork points of its tree rollouts.
    """
    if k < 0:
        raise ValueError(f"k: got {k}, expected at least 0")
    known = [i for i, entropy in enumerate(entropies) if not math.isnan(entropy)]
    return sorted(known, key=lambda i: -entropies[i])[:k]
