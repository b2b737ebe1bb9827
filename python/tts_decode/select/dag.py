"""Dependencies between the parts of a problem. `needs[i]` lists the parts that part i depends on."""

from __future__ import annotations

from collections.abc import Sequence


def earlier_needs(needs: Sequence[Sequence[int]]) -> list[list[int]]:
    """Returns only the possible needs: a part depends on earlier parts, each named once, in order.

    The result has no cycle, whatever a model wrote.
    """
    return [sorted({j for j in wanted if 0 <= j < i}) for i, wanted in enumerate(needs)]


def longest_path(needs: Sequence[Sequence[int]]) -> int:
    """Returns the number of parts on the longest chain of needs; 1 without needs, 0 without parts.

    Needs point back.
    """
    lengths: list[int] = []
    for wanted in needs:
        lengths.append(1 + max((lengths[j] for j in wanted), default=0))
    return max(lengths, default=0)


def ancestors(needs: Sequence[Sequence[int]], parts: Sequence[int]) -> list[int]:
    """Returns these parts and all that they depend on, directly or not, in order. Needs point back."""
    found: set[int] = set()
    pending = list(parts)
    while pending:
        part = pending.pop()
        if part not in found:
            found.add(part)
            pending += needs[part]
    return sorted(found)
