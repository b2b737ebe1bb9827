"""Which of several samples agrees best with the others."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def most_central(distances: npt.ArrayLike) -> int:
    """Index of the smallest mean distance to the others; distances: [N, N], symmetric, zero diagonal, none
    negative.

    Wang et al., arXiv 2503.01422, section 3: of samples on their way to n answers, the one nearest to the
    rest estimates the best of n.
    """
    d = np.asarray(distances, np.float64)
    if d.ndim != 2 or d.shape[0] != d.shape[1] or not len(d):
        raise ValueError(f"distances: got shape {d.shape}, expected [N, N] with N of at least 1")
    if not np.isfinite(d).all():
        raise ValueError("distances: got NaN or infinity, expected finite numbers")
    sums = d.sum(1)
    return int((sums <= sums.min() * (1 + 1e-9)).argmax())  # equal ones differ by rounding: the first


def hidden_distances(vectors: Sequence[npt.ArrayLike]) -> Floats:
    """Squared Euclidean distances [N, N] of N vectors [D]."""
    x = np.asarray(vectors, np.float64)
    distances: Floats = np.square(x[:, None] - x[None]).sum(-1)
    return distances


def ngram_distances(sequences: Sequence[Sequence[Hashable]], n: int = 2) -> Floats:
    """1 - Jaccard overlap [N, N] of the sets of n-grams in N sequences of words; 0 for equal sequences.

    A sequence shorter than `n` is one n-gram.
    """
    if n < 1:
        raise ValueError(f"n: got {n}, expected at least 1")
    grams = [{tuple(s[i : i + n]) for i in range(max(len(s) - n + 1, 1))} for s in sequences]
    return np.array([[1 - len(a & b) / len(a | b) for b in grams] for a in grams])
