"""Groups steps that say the same thing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..extras import require


def cluster(
    embeddings: Sequence[Sequence[float]] | np.ndarray[Any, Any], threshold: float = 0.05
) -> list[int]:
    """Labels the rows of `embeddings` [N, D] by average linkage, cosine distance, cut at `threshold`.

    Labels are 0..K-1 in order of first appearance. The rule and the threshold are those of ETS's code. A row
    of zeros is at distance 1 from every other row.
    """
    require("scipy")
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    rows = np.asarray(embeddings, dtype=np.float64)
    if rows.ndim != 2 or len(rows) == 0:
        raise ValueError(f"embeddings: got shape {rows.shape}, expected [N, D] with N >= 1")
    if not np.isfinite(rows).all():
        row = np.argwhere(~np.isfinite(rows))[0][0]
        raise ValueError(f"embeddings[{row}]: got NaN or infinity, expected finite numbers")
    if not threshold >= 0:
        raise ValueError(f"threshold: got {threshold}, expected 0 or more")
    if len(rows) == 1:
        return [0]
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / np.where(norms > 0, norms, 1)
    distance = np.clip(1 - unit @ unit.T, 0, 2)
    np.fill_diagonal(distance, 0)
    merges = linkage(squareform(distance, checks=False), method="average")
    found = fcluster(merges, threshold, criterion="distance")
    label: dict[int, int] = {}
    return [label.setdefault(int(f), len(label)) for f in found]
