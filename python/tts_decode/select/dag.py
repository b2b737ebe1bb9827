"""Dependencies between the parts of a problem. `needs[i]` lists the parts that part i rests on."""

from __future__ import annotations

from collections.abc import Sequence


def earlier_needs(needs: Sequence[Sequence[int]]) -> list[list[int]]:
    """The same without what cannot be: a part rests on parts before it only, each named once, in order.

    What is left has no cycle, whatever a model wrote.
    """
    return [sorted({j for j in wanted if 0 <= j < i}) for i, wanted in enumerate(needs)]


def longest_path(needs: Sequence[Sequence[int]]) -> int:
    """Parts on the longest chain of needs; 1 if none rests on another, 0 without parts. Needs point back."""
    lengths: list[int] = []
    for wanted in needs:
        lengths.append(1 + max((lengths[j] for j in wanted), default=0))
    return max(lengths, default=0)


def ancestors(needs: Sequence[Sequence[int]], parts: Sequence[int]) -> list[int]:
    """These parts and all that they rest on, directly or not, in order. Needs point back."""
    found: set[int] = set()
    pending = list(parts)
    while pending:
        part = pending.pop()
        if part not in found:
            found.add(part)
            pending += needs[part]
    return sorted(found)
