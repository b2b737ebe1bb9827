"""Which actor holds the beginning of which prompt, as texts tell."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Hashable
from typing import Generic, TypeVar

Actor = TypeVar("Actor", bound=Hashable)

BLOCK = 256  # characters
MOST_CHARACTERS = 64 * BLOCK  # of one prompt; what comes behind tells actors apart no further

Blocks = tuple[int, ...]
"""A hash of each beginning of a prompt that is a whole number of blocks long, and of all of it."""


def blocks_of(prompt: str) -> Blocks:
    found, before = [], 0
    for start in range(0, min(len(prompt), MOST_CHARACTERS), BLOCK):
        before = hash((before, prompt[start : start + BLOCK]))
        found.append(before)
    return tuple(found)


class HeldPrefixes(Generic[Actor]):
    """The prompts of each actor's searches under way, and of the last `remember` that ended there."""

    def __init__(self, remember: int) -> None:
        self._remember = remember
        self._held: dict[int, Counter[Actor]] = defaultdict(Counter)  # block -> actor -> prompts with it
        self._ended: dict[Actor, deque[Blocks]] = defaultdict(deque)

    def begin(self, actor: Actor, blocks: Blocks) -> None:
        for block in blocks:
            self._held[block][actor] += 1

    def end(self, actor: Actor, blocks: Blocks) -> None:
        """A search that began there is over."""
        ended = self._ended[actor]
        ended.append(blocks)
        if len(ended) > self._remember:
            self._forget(actor, ended.popleft())

    def drop(self, actor: Actor, under_way: list[Blocks]) -> None:
        """The actor is gone."""
        for blocks in [*self._ended.pop(actor, ()), *under_way]:
            self._forget(actor, blocks)

    def depths(self, blocks: Blocks) -> dict[Actor, int]:
        """How many blocks of a prompt, from its first on, each actor holds that holds any."""
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
