"""Which of several samples agrees best with the others."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def most_central(distances: npt.ArrayLike) -> int:
    """Returns the index of the smallest mean distance to the others.

    distances: [N, N], symmetric, zero diagonal, not negative. Wang et al., arXiv 2503.01422, section 3: among
    samples on their way to n answers, the one nearest to the rest estimates the best of n.
    """
    d = np.asarray(distances, np.float64)
    if d.ndim != 2 or d.shape[0] != d.shape[1] or not len(d):
        raise ValueError(f"distances: got shape {d.shape}, expected [N, N] with N of at least 1")
    if not np.isfinite(d).all():
        raise ValueError("distances: got NaN or infinity, expected finite numbers")
    sums = d.sum(1)
    return int((sums <= sums.min() * (1 + 1e-9)).argmax())  # equal sums differ by rounding; takes the first


def chain_of_embedding(states: npt.ArrayLike) -> Floats:
    """Returns how far N texts move from layer to layer, as one number each, [N].

    Args:
        states: [N, K, D], hidden states of the K - 1 layers' inputs and of the output, K at least 2.

    The number is the mean over the K - 1 moves of the distance moved, in units of the distance from the first
    to the last state, minus the angle turned, in units of the angle between those two. Wang et al., "Latent
    Space Chain-of-Embedding", arXiv 2410.13640; arXiv 2503.01422, section 3, compares samples by it. As in
    its code, lengths and angles have a floor, so that equal states give a number.
    """
    h = np.asarray(states, np.float64)
    if h.ndim != 3 or h.shape[1] < 2:
        raise ValueError(f"states: got shape {list(h.shape)}, expected [N, K, D] with K of at least 2")
    chain: Floats = (
        _lengths(h[:, 1:] - h[:, :-1]) / _floor(_lengths(h[:, -1:] - h[:, :1]))
        - _angles(h[:, 1:], h[:, :-1]) / _floor(_angles(h[:, -1:], h[:, :1]))
    ).mean(1)
    return chain


def squared_differences(numbers: npt.ArrayLike) -> Floats:
    """Returns (x_i - x_j)^2, [N, N], for N numbers."""
    x = np.asarray(numbers, np.float64)
    distances: Floats = np.square(x[:, None] - x[None])
    return distances


def _lengths(x: Floats) -> Floats:
    lengths: Floats = np.linalg.norm(x, axis=-1)
    return lengths


def _floor(x: Floats) -> Floats:
    return np.maximum(x, 1e-8)


def _angles(x: Floats, y: Floats) -> Floats:
    cosines = (x * y).sum(-1) / (_floor(_lengths(x)) * _floor(_lengths(y)))
    angles: Floats = np.arccos(cosines.clip(1e-7 - 1, 1 - 1e-7))
    return angles


def ngram_distances(sequences: Sequence[Sequence[Hashable]], n: int = 2) -> Floats:
    """Returns 1 - Jaccard overlap, [N, N], of the n-gram sets of N word sequences; 0 for equal sequences.

    A sequence shorter than `n` is one n-gram.
    """
    if n < 1:
        raise ValueError(f"n: got {n}, expected at least 1")
    grams = [{tuple(s[i : i + n]) for i in range(max(len(s) - n + 1, 1))} for s in sequences]
    return np.array([[1 - len(a & b) / len(a | b) for b in grams] for a in grams])
