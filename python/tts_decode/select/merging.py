"""Merges search states that say the same."""

from __future__ import annotations

from collections.abc import Hashable, Sequence


def hyper_nodes(labels: Sequence[Hashable], scores: Sequence[float]) -> list[list[int]]:
    """Returns groups of indices with equal labels, each best score first, in order of first appearance.

    Each group is a hyper-node of FETCH (Wang et al., arXiv 2502.11183), whose value is its first member's
    score. Ties go to the lower index.
    """
    groups: dict[Hashable, list[int]] = {}
    for i, label in enumerate(labels):
        groups.setdefault(label, []).append(i)
    return [sorted(group, key=lambda i: -scores[i]) for group in groups.values()]
