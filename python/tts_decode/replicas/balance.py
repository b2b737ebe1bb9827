"""Chooses the replica for a request: the one that holds its prompt's prefix, unless it is much busier."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from ..cluster.prefixes import Blocks, HeldPrefixes, blocks_of

AHEAD = 8  # a replica this many requests ahead of the least busy one gets no more for its prefixes


class Balance:
    """Tracks the requests of each replica.

    Args:
        replicas: number of replicas.
        remember: how many of a replica's last prompts count as resident there.
    """

    def __init__(self, replicas: int, remember: int) -> None:
        self._held: HeldPrefixes[int] = HeldPrefixes(remember)
        self._running: list[list[Blocks]] = [[] for _ in range(replicas)]
        self._last = [0] * replicas  # when each was chosen last
        self._chosen = 0

    @contextmanager
    def chosen(self, beginning: str, among: Collection[int]) -> Iterator[int]:
        """Yields the replica for a prompt, and counts the request there until the block ends.

        among: numbers of the replicas to choose from, at least one.
        """
        blocks = blocks_of(beginning)
        depths = self._held.depths(blocks)
        least = min(len(self._running[number]) for number in among)
        free = [number for number in among if len(self._running[number]) <= least + AHEAD]
        number = min(free, key=lambda n: (-depths.get(n, 0), len(self._running[n]), self._last[n]))
        self._chosen += 1
        self._last[number] = self._chosen
        running = self._running[number]
        running.append(blocks)
        self._held.begin(number, blocks)
        try:
            yield number
        finally:
            if running is self._running[number]:
                running.remove(blocks)
                self._held.end(number, blocks)

    def forget(self, number: int) -> None:
        """Clears the requests and prefixes of a replica whose process died."""
        self._held.drop(number, self._running[number])
        self._running[number] = []
