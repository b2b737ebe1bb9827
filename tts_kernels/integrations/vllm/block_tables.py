"""Block tables of layers with a sliding window, whose early blocks vLLM takes back."""

from __future__ import annotations

import numpy as np

from ...plans.tree_plan import Int32Array


def joined_behind_window(
    tables: Int32Array, lengths: Int32Array, query_lens: Int32Array, window: int, block_size: int
) -> Int32Array:
    """Tables in which sequences that share a block begin with the same ids, as plans want them.

    vLLM puts its null block in the place of each block that has left the window, for each sequence at another
    step: the blocks that two sequences still share lie behind ids that differ. No query reads what is before
    its window, so a sequence may have there what another one with the same next block has.

    Args:
        tables: int32 [B, P], of blocks of block_size tokens. lengths: int32 [B], tokens of the sequences.
        query_lens: int32 [B], how many of the last tokens are queries. window: most tokens that a query sees.
    """
    first = np.maximum(lengths - query_lens - (window - 1), 0) // block_size  # block that is read
    if not first.any():
        return tables
    joined: Int32Array = tables.copy()
    order = np.argsort(first, kind="stable")
    for column in np.unique(first):
        # Of the sequences with one id here, the one that reads furthest back is the first in this order. Its
        # row was joined with those before it already.
        _, earliest, found = np.unique(joined[order, column], return_index=True, return_inverse=True)
        source = np.empty_like(order)
        source[order] = order[earliest[found]]
        rows = np.flatnonzero(first == column)
        joined[rows, :column] = joined[source[rows], :column]
    return joined
