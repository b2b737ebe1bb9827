"""The KV of a grown tree, token by token: runs its branches through a `KVTree` with pages of 16 tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from benches.ets_claims.growing import Stage
from benches.ets_claims.worlds import Nodes
from tts_kernels import KVTree

PAGE = 16
CHUNK = 8  # tokens that all branches take between two looks at the tree


class Moment(NamedTuple):
    """The tree while its branches took `ticks` tokens each, as it was after them.

    rows: branches that sampled, those that were at the end of their step left out. pages: resident. tokens:
    distinct. pairs: (row, token) pairs of attention. stage: which step of the search.
    """

    ticks: int
    rows: int
    pages: int
    tokens: int
    pairs: int
    stage: int


class Snapshot(NamedTuple):
    """A step's attention: pages of each branch's path, int32 [B, pages], and lengths, int32 [B]."""

    tables: np.ndarray[tuple[int, int], np.dtype[np.int32]]
    lengths: np.ndarray[tuple[int], np.dtype[np.int32]]


def replay(
    nodes: Nodes,
    stages: Sequence[Stage],
    at_middle: Callable[[int, Snapshot], None] | None = None,
) -> list[Moment]:
    """The moments of a search. at_middle: is handed each stage's number and its attention half-way, when all
    branches sample still."""
    most = nodes.tokens[0] + sum(
        (max(nodes.tokens[node] for node in stage.steps) + PAGE) * len(stage.steps) for stage in stages
    )
    tree = KVTree(num_pages=most // PAGE + 1, page_size=PAGE)
    root = tree.create()
    tree.append([root], [[0] * nodes.tokens[0]])
    moments: list[Moment] = []
    branches = tree.fork(root, len(stages[0].steps))
    for number, stage in enumerate(stages):
        left = [nodes.tokens[node] for node in stage.steps]
        half = min(left) // 2
        while longest := max(left):
            ticks = min(CHUNK, longest)
            going = [i for i, tokens in enumerate(left) if tokens]
            rows = [branches[i] for i in going]
            tree.append(rows, [[0] * min(ticks, left[i]) for i in going])
            for i in going:
                left[i] -= min(ticks, left[i])
            seen = tree.stats()
            pairs = sum(tree.length(branch) for branch in rows)
            moments.append(Moment(ticks, len(rows), seen.resident_pages, seen.unique_tokens, pairs, number))
            if at_middle is not None and half is not None and nodes.tokens[stage.steps[0]] - left[0] >= half:
                at_middle(number, Snapshot(*tree.block_tables(rows)))
                half = None
        after = dict(zip(stage.live, stage.counts, strict=True))
        following: list[int] = []
        for node, branch in zip(stage.steps, branches, strict=True):
            if count := after.get(node, 0):
                following += tree.fork(branch, count)
        for branch in branches:
            tree.release(branch)
        branches = following
    return moments


def mean_pages(moments: Sequence[Moment]) -> float:
    """Over the time of the search in tokens."""
    return sum(moment.pages * moment.ticks for moment in moments) / sum(moment.ticks for moment in moments)


def peak_pages(moments: Sequence[Moment]) -> int:
    return max(moment.pages for moment in moments)
