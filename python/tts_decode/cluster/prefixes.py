"""Which actor holds the beginning of which prompt, judged by text."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Hashable
from typing import Generic, TypeVar

Actor = TypeVar("Actor", bound=Hashable)

BLOCK = 256  # characters
MOST_CHARACTERS = 64 * BLOCK  # per prompt; later text no longer affects the choice of an actor

Blocks = tuple[int, ...]
"""Hashes of a prompt's prefixes of whole blocks, and of the whole prompt."""


def blocks_of(prompt: str) -> Blocks:
    found, before = [], 0
    for start in range(0, min(len(prompt), MOST_CHARACTERS), BLOCK):
        before = hash((before, prompt[start : start + BLOCK]))
        found.append(before)
    return tuple(found)


class HeldPrefixes(Generic[Actor]):
    """The prompts of each actor's running searches, and of the last `remember` that ended there."""

    def __init__(self, remember: int) -> None:
        self._remember = remember
        self._held: dict[int, Counter[Actor]] = defaultdict(Counter)  # block -> actor -> prompts with it
        self._ended: dict[Actor, deque[Blocks]] = defaultdict(deque)

    def begin(self, actor: Actor, blocks: Blocks) -> None:
        for block in blocks:
            self._held[block][actor] += 1

    def end(self, actor: Actor, blocks: Blocks) -> None:
        """Records the end of a search that began there."""
        ended = self._ended[actor]
        ended.append(blocks)
        if len(ended) > self._remember:
            self._forget(actor, ended.popleft())

    def drop(self, actor: Actor, under_way: list[Blocks]) -> None:
        """Removes an actor that is gone."""
        for blocks in [*self._ended.pop(actor, ()), *under_way]:
            self._forget(actor, blocks)

    def depths(self, blocks: Blocks) -> dict[Actor, int]:
        """Returns how many blocks of a prompt, from the first on, each actor holds, if any."""
        found: dict[Actor, int] = {}
        for depth, block in enumerate(blocks, start=1):
            holders = self._held.get(block)
            if not holders:
                break
            found.update(dict.fromkeys(holders, depth))
        return found

    def _forget(self, actor: Actor, blocks: Blocks) -> None:
        for block in blocks:
            holders = self._held[block]
            holders[actor] -= 1
            if not holders[actor]:
                del holders[actor]
            if not holders:
                del self._held[block]
