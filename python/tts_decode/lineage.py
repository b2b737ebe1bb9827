"""Where a branch stands in its tree: facts of its history, the same whoever else lives, waits or runs."""

from __future__ import annotations

import itertools
from typing import NamedTuple

_numbers = itertools.count()


class Lineage(NamedTuple):
    """What sparse attention goes by.

    tree: number of the tree, which begins at a root. fork: number of the branch's last fork, the deepest on
    its path; one that no other branch has where it was never forked. at: position in `Branch.tokens` of that
    fork, behind which no other branch has the tokens; None where it was never forked.
    """

    tree: int
    fork: int
    at: int | None

    @classmethod
    def of_root(cls, at: int | None = None) -> Lineage:
        """at: of a branch that is made again, the position of its last fork."""
        return cls(next(_numbers), next(_numbers), at)

    def cut(self, length: int) -> Lineage:
        """Of the branch with the first `length` tokens: a last fork behind them moves to their end."""
        if self.at is None or self.at <= length:
            return self
        return Lineage(self.tree, next(_numbers), length)

    def child(self, at: int) -> Lineage:
        """Of children forked at a position. Where that is the branch's last fork, they join it."""
        return self if self.at == at else Lineage(self.tree, next(_numbers), at)

    def parent(self, child: Lineage) -> Lineage:
        """Of the branch after that fork: it may lie before its last one."""
        return self if self.at is not None and child.at is not None and child.at <= self.at else child
