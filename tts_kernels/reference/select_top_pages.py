"""Specification of `tts_kernels.select_top_pages` in plain Python."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor


@dataclass
class _Row:
    """A query: its branch, its row of q, its pages by column, and the columns that it always keeps."""

    branch: int
    index: int  # row of q
    pages: list[int]
    budget: int
    kept: set[int]

    @property
    def dense(self) -> bool:
        return self.budget >= len(self.pages)


def select_top_pages(
    scores: Tensor,
    block_tables: Tensor,
    lengths: Tensor,
    query_lens: Tensor,
    budget: int | Sequence[int],
    *,
    top_p: float | None = None,
    sink: int = 1,
    recent: int = 1,
    share: str = "branch",
    keep_tail: bool = True,
    page_size: int = 16,
) -> Tensor:
    """bool [num_kv_heads, T, P]: the pages that each query reads; see `tts_kernels.select_top_pages`.

    Branches must be in depth-first order here.
    """
    branches = [i for i, n in enumerate(query_lens.tolist()) if n]
    tables = {i: block_tables[i, : -(-int(lengths[i]) // page_size)].tolist() for i in branches}
    shared = [0, *(_agreed(tables[a], tables[b]) for a, b in pairwise(branches))]
    rows: list[_Row] = []
    for place, branch in enumerate(branches):
        others = {page for other in branches if other != branch for page in tables[other] if page >= 0}
        own = max((column + 1 for column, page in enumerate(tables[branch]) if page in others), default=0)
        for position in range(int(lengths[branch]) - int(query_lens[branch]), int(lengths[branch])):
            pages = tables[branch][: position // page_size + 1]
            count, n = len(rows), len(pages)
            kept = set(range(min(sink, n))) | set(range(max(n - recent, 0), n))
            if keep_tail and own:
                kept |= set(range(own, n))
            limit = budget if isinstance(budget, int) else int(budget[count])
            rows.append(_Row(place, count, pages, limit, kept))

    chosen = torch.zeros(scores.shape, dtype=torch.bool)
    for head in range(scores.shape[0]):
        for row in rows:
            chosen[head, row.index, list(range(len(row.pages))) if row.dense else list(row.kept)] = True
        for group in _groups([row for row in rows if not row.dense], shared, share):
            for path in _best_pages(group, scores[head], top_p):
                for row in group:
                    if tuple(row.pages[: len(path)]) == path:
                        chosen[head, row.index, len(path) - 1] = True
    return chosen


def _agreed(a: list[int], b: list[int]) -> int:
    count = 0
    while count < min(len(a), len(b)) and a[count] == b[count]:
        count += 1
    while count and a[count - 1] < 0:  # holes in which they agree at last are no shared pages
        count -= 1
    return count


def _groups(rows: list[_Row], shared: list[int], share: str) -> Iterable[list[_Row]]:
    """Rows that choose together."""
    group: list[_Row] = []
    for row in rows:
        if group and not _together(group[-1].branch, row.branch, shared, share):
            yield group
            group = []
        group.append(row)
        if share == "branch":
            yield group
            group = []
    if group:
        yield group


def _together(a: int, b: int, shared: list[int], share: str) -> bool:
    """Whether branches a <= b choose together: under one root, or with the same deepest fork."""
    if a == b:
        return True
    between = min(shared[a + 1 : b + 1])
    if share == "tree":
        return between > 0
    ends = [*shared, 0]
    return between > 0 and all(max(ends[i], ends[i + 1]) == between for i in range(a, b + 1))


def _best_pages(group: list[_Row], scores: Tensor, top_p: float | None) -> list[tuple[int, ...]]:
    """The pages that the group takes beside those always kept, each as the path down to it, best first.

    A page that lies on two paths behind pages that differ is chosen for each path on its own.
    """
    total: dict[tuple[int, ...], float] = {}  # by path, in the order of first sight: depth-first
    taken = 0.0
    for row in group:
        for column in range(len(row.pages)):
            score = float(scores[row.index, column])
            if column in row.kept:
                taken += score
            else:
                path = tuple(row.pages[: column + 1])
                total[path] = total.get(path, 0.0) + score
    quota = max(0, min(row.budget for row in group) - max(len(row.kept) for row in group))
    best = sorted((item for item in total.items() if item[1] > 0), key=lambda item: (-item[1], len(item[0])))
    enough = float("inf") if top_p is None else top_p * len(group)
    pages: list[tuple[int, ...]] = []
    for path, score in best[:quota]:
        if taken >= enough:
            break
        pages.append(path)
        taken += score
    return pages
