"""A branch's place in its tree: facts of its history, the same whichever other branches live, wait or run."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import NamedTuple

_numbers = itertools.count()


class Fork(NamedTuple):
    """A point where a branch's path was forked: a position in its `tokens`, and a unique number."""

    at: int
    number: int


class Lineage(NamedTuple):
    """The place of a branch in its tree, which decides what sparse attention reads.

    tree: number of the tree, which begins at a root. forks: of the path, by position. All branches forked at
    one point of a path have the same fork there.
    """

    tree: int
    forks: tuple[Fork, ...] = ()

    @classmethod
    def of_root(cls, forks: Iterable[int] = ()) -> Lineage:
        """Returns a new tree's lineage. forks: ascending positions, for a branch that is restored."""
        return cls(next(_numbers), tuple(Fork(at, next(_numbers)) for at in forks))

    def cut(self, length: int) -> Lineage:
        """Returns the lineage of the first `length` tokens. What it shares ends there at the latest."""
        kept = tuple(fork for fork in self.forks if fork.at <= length)
        shortened = self._replace(forks=kept)
        return self if kept == self.forks else shortened.forked(length)

    def forked(self, at: int) -> Lineage:
        """Returns the branch's lineage after a fork at a position; cut there, it is the children's."""
        if any(fork.at == at for fork in self.forks):
            return self
        return self._replace(forks=tuple(sorted((*self.forks, Fork(at, next(_numbers))))))

    def last_fork(self, position: int) -> Fork | None:
        """Returns the last fork before the token at a position: what lies between is the branch's own."""
        return next((fork for fork in reversed(self.forks) if fork.at <= position), None)
