"""The rules of sparse attention for a batch: who goes into it together, and what its tokens read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..model.sparse import SparseConfig, SparseReads
from .requests import Feed, Request


def whole_trees(
    waiting: Sequence[Request[Any]], next_tokens: Callable[[Request[Any]], list[int]], max_rows: int
) -> list[Request[Any]]:
    """Returns the requests that continue in a tick if the branches of a tree choose pages together.

    It takes all of a tree or none of it, as far as it fits into a forward of `max_rows` tokens, so who
    chooses together does not depend on the rest of the batch. A run that waits alone in its tree continues in
    chunks.
    """
    trees: dict[int, list[Request[Any]]] = {}
    for request in waiting:
        if request.admitted:
            trees.setdefault(request.path.lineage.tree, []).append(request)
    rows = max_rows
    turn: list[Request[Any]] = []
    runs: list[Request[Any]] = []
    for requests in trees.values():
        count = sum(len(next_tokens(request)) for request in requests)
        if len(requests) == 1 and count > 1:
            runs += requests
        elif (needed := min(count, max_rows)) <= rows:
            turn += requests
            rows -= needed
    return turn + runs


def reads_of(batch: Sequence[Feed], sparse: SparseConfig, page_size: int) -> SparseReads | None:
    """Returns what each token of a forward reads; None: everything."""
    paths = [feed.request.path for feed in batch]
    begins = np.array([path.kv_length for path in paths])
    counts = np.array([len(feed.tokens) for feed in batch])
    forced = np.array([feed.request.forced_from for feed in batch]) <= begins
    return sparse.reads(begins, counts, forced, [path.lineage for path in paths], page_size)
