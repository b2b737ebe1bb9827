"""Block tables of layers with a sliding window, whose early blocks vLLM frees."""

from __future__ import annotations

import numpy as np

from ...plans.tree_plan import Int32Array


def joined_behind_window(
    tables: Int32Array, lengths: Int32Array, query_lens: Int32Array, window: int, block_size: int
) -> Int32Array:
    """Returns tables in which sequences that share a block begin with the same ids, as plans require.

    vLLM replaces each block that has left the window by its null block, for each sequence at another step:
    blocks that two sequences still share then follow ids that differ. No query reads anything before its
    window, so a sequence may take the earlier entries of another one with the same next block.

    Args:
        tables: int32 [B, P], of blocks of block_size tokens. lengths: int32 [B], tokens of the sequences.
        query_lens: int32 [B], how many of the last tokens are queries. window: most tokens that a query sees.
    """
    first = np.maximum(lengths - query_lens - (window - 1), 0) // block_size  # first block that is read
    if not first.any():
        return tables
    joined: Int32Array = tables.copy()
    order = np.argsort(first, kind="stable")
    for column in np.unique(first):
        # Among the sequences with one id here, the one that reads furthest back is first in this order. Its
        # row was already joined with earlier ones.
        _, earliest, found = np.unique(joined[order, column], return_index=True, return_inverse=True)
        source = np.empty_like(order)
        source[order] = order[earliest[found]]
        rows = np.flatnonzero(first == column)
        joined[rows, :column] = joined[source[rows], :column]
    return joined
