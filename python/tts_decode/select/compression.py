"""Which tokens of a KV cache to keep in each layer: those that draw the most attention."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tts_kernels.checks import integer


def kept_tokens(importance: npt.NDArray[np.floating], keep: int) -> npt.NDArray[np.int64]:
    """Returns the indices of the `keep` most important tokens of each layer, ascending: int64 [layers, keep].

    Args:
        importance: float [layers, tokens], finite: the attention that each token draws in each layer.
        keep: tokens per layer, 1 <= keep <= tokens. Among equals the earlier is kept.

    CRITIC (Sagar Srinivas et al., arXiv 2504.01281) compresses a cache by the importance of its tokens.
    SnapKV (Li et al., arXiv 2404.14469) scores tokens by the attention of the last queries, here summed over
    the heads of a layer.
    """
    if importance.ndim != 2:
        raise ValueError(f"importance: got shape {importance.shape}, expected [layers, tokens]")
    if not np.isfinite(importance).all():
        layer, token = np.argwhere(~np.isfinite(importance))[0]
        value = importance[layer, token]
        raise ValueError(f"importance[{layer}, {token}]: got {value}, expected a finite number")
    keep = integer("keep", keep, 1, importance.shape[1])
    order = np.argsort(-importance, axis=1, kind="stable")
    return np.sort(order[:, :keep], axis=1)
