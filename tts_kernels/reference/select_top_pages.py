"""Specification of `tts_kernels.select_top_pages` in plain Python."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class _Row:
    """A query: its row of q, its pages by column, and the columns that it always keeps."""

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
    tail_begin: Sequence[int] | None = None,
    groups: Sequence[int] | None = None,
    page_size: int = 16,
) -> Tensor:
    """bool [num_kv_heads, T, P]: the pages that each query reads; see `tts_kernels.select_top_pages`.

    Branches must be in depth-first order here.
    """
    rows: list[_Row] = []
    for table, length, count in zip(
        block_tables.tolist(), lengths.tolist(), query_lens.tolist(), strict=True
    ):
        for position in range(length - count, length):
            pages = table[: position // page_size + 1]
            index, n = len(rows), len(pages)
            kept = set(range(min(sink, n))) | set(range(max(n - recent, 0), n))
            if tail_begin is not None:
                kept |= set(range(tail_begin[index], n))
            limit = budget if isinstance(budget, int) else int(budget[index])
            rows.append(_Row(index, pages, limit, kept))

    chosen = torch.zeros(scores.shape, dtype=torch.bool)
    for head in range(scores.shape[0]):
        for row in rows:
            chosen[head, row.index, list(range(len(row.pages))) if row.dense else list(row.kept)] = True
        for group in _together([row for row in rows if not row.dense], groups):
            for path in _best_pages(group, scores[head], top_p):
                for row in group:
                    if tuple(row.pages[: len(path)]) == path:
                        chosen[head, row.index, len(path) - 1] = True
    return chosen


def _together(rows: list[_Row], groups: Sequence[int] | None) -> Iterable[list[_Row]]:
    """Rows that choose together."""
    if groups is None:
        return [[row] for row in rows]
    found: dict[int, list[_Row]] = {}
    for row in rows:
        found.setdefault(groups[row.index], []).append(row)
    return found.values()


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
