"""Which replica gets a request: one that holds the beginning of its prompt, unless others have less to do."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from ..cluster.prefixes import Blocks, HeldPrefixes, blocks_of

AHEAD = 8  # requests that a replica may have more than the least busy one and still get those it holds


class Balance:
    """The requests that each replica has.

    Args:
        remember: prompts of a replica's last requests, which count as resident there.
    """

    def __init__(self, replicas: int, remember: int) -> None:
        self._held: HeldPrefixes[int] = HeldPrefixes(remember)
        self._running: list[list[Blocks]] = [[] for _ in range(replicas)]
        self._last = [0] * replicas  # when each was chosen last
        self._chosen = 0

    @contextmanager
    def chosen(self, beginning: str, among: Collection[int]) -> Iterator[int]:
        """The replica for a prompt, which has its request until the end of the block. among: one at least."""
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
        """A replica's process has died, and what it held."""
        self._held.drop(number, self._running[number])
        self._running[number] = []
