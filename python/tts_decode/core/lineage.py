"""Where a branch stands in its tree: facts of its history, the same whoever else lives, waits or runs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import NamedTuple

_numbers = itertools.count()


class Fork(NamedTuple):
    """A place where the path of a branch was forked: a position in its `tokens`, and a number of its own."""

    at: int
    number: int


class Lineage(NamedTuple):
    """What sparse attention goes by.

    tree: number of the tree, which begins at a root. forks: of the path, by position. All branches that were
    forked at one place of a path have the same fork there.
    """

    tree: int
    forks: tuple[Fork, ...] = ()

    @classmethod
    def of_root(cls, forks: Iterable[int] = ()) -> Lineage:
        """forks: ascending positions, of a branch that is made again."""
        return cls(next(_numbers), tuple(Fork(at, next(_numbers)) for at in forks))

    def cut(self, length: int) -> Lineage:
        """Of the branch with its first `length` tokens. What it shares then ends there, if not earlier."""
        kept = tuple(fork for fork in self.forks if fork.at <= length)
        shortened = self._replace(forks=kept)
        return self if kept == self.forks else shortened.forked(length)

    def forked(self, at: int) -> Lineage:
        """Of the branch after a fork at a position; cut there, of the children."""
        if any(fork.at == at for fork in self.forks):
            return self
        return self._replace(forks=tuple(sorted((*self.forks, Fork(at, next(_numbers))))))

    def last_fork(self, position: int) -> Fork | None:
        """The last fork before the token at a position: what lies between is the branch's own."""
        return next((fork for fork in reversed(self.forks) if fork.at <= position), None)
