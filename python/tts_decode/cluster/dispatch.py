"""Decides which actor gets which search: plain bookkeeping, without Ray or decoders."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, TypeVar

from .prefixes import Blocks, HeldPrefixes, blocks_of

Actor = TypeVar("Actor", bound=Hashable)
Key = TypeVar("Key", bound=Hashable)

_WINDOW = 64  # searches at the head of the queue among which one is chosen for an actor
_SUSPECT = 2  # deaths of actors after which a search gets an actor to itself


@dataclass
class _Search:
    blocks: Blocks
    deaths: int = 0

    @property
    def suspect(self) -> bool:
        return self.deaths >= _SUSPECT


@dataclass
class _Load(Generic[Key]):
    """An actor's running searches. reserved: it gets no other before it has none."""

    searches: dict[Key, _Search] = field(default_factory=dict)
    reserved: bool = False


class Dispatch(Generic[Actor, Key]):
    """Gives each search to one actor at a time, until it has ended once.

    An actor has at most `in_flight` searches. As long as it has room and a search is waiting, it gets one:
    preferably one whose prompt begins like one that it holds, then one whose beginning no other actor holds,
    otherwise the one that has waited longest. Searches of an actor that dies wait again, before all others. A
    search during which two actors died runs alone on an actor, so that only it can be blamed; after
    `attempts` deaths it is given up.

    in_flight: may be changed at any time. remember: see `HeldPrefixes`.
    """

    def __init__(self, in_flight: int, attempts: int, remember: int = 0) -> None:
        self.in_flight = in_flight
        self._attempts = attempts
        self._held: HeldPrefixes[Actor] = HeldPrefixes(remember)
        self._waiting: dict[Key, _Search] = {}
        self._actors: dict[Actor, _Load[Key]] = {}

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return sum(len(load.searches) for load in [*self._actors.values()])  # callable from any thread

    def submit(self, key: Key, prompt: str) -> None:
        self._waiting[key] = _Search(blocks_of(prompt))

    def withdraw(self, key: Key) -> Actor | None:
        """Drops a search that nobody waits for; returns the actor that runs it, if any."""
        self._waiting.pop(key, None)
        return self.runs(key)

    def runs(self, key: Key) -> Actor | None:
        """Returns the actor that has the search."""
        return next((actor for actor, load in self._actors.items() if key in load.searches), None)

    def join(self, actor: Actor) -> None:
        self._actors[actor] = _Load()

    def leave(self, actor: Actor) -> tuple[list[Key], list[Key]]:
        """Removes a dead actor; returns the searches that wait again, and those that are given up."""
        load = self._actors.pop(actor, None)
        if load is None:
            return [], []
        self._held.drop(actor, [search.blocks for search in load.searches.values()])
        for search in load.searches.values():
            search.deaths += 1
        given_up = [key for key, search in load.searches.items() if search.deaths >= self._attempts]
        again = {key: search for key, search in load.searches.items() if key not in given_up}
        self._waiting = again | self._waiting
        return list(again), given_up

    def ended(self, actor: Actor, key: Key) -> bool:
        """Records the end of a search there; returns False if the actor was not running it (any longer)."""
        load = self._actors.get(actor)
        search = None if load is None else load.searches.pop(key, None)
        if load is None or search is None:
            return False
        self._held.end(actor, search.blocks)
        load.reserved = load.reserved and bool(load.searches)
        return True

    def assignments(self) -> Iterator[tuple[Actor, Key]]:
        """Yields what to start now."""
        while (chosen := self._choose_alone() or self._choose()) is not None:
            actor, key = chosen
            search = self._waiting.pop(key)
            self._actors[actor].searches[key] = search
            self._held.begin(actor, search.blocks)
            yield actor, key

    def _choose_alone(self) -> tuple[Actor, Key] | None:
        """Returns a suspect and an idle actor; if none is idle, one is kept free from now on."""
        key = next((key for key, search in self._waiting.items() if search.suspect), None)
        if key is None or not self._actors:
            return None
        if any(load.reserved and load.searches for load in self._actors.values()):
            return None  # one at a time
        actor = min(self._actors, key=lambda actor: len(self._actors[actor].searches))
        self._actors[actor].reserved = True
        return None if self._actors[actor].searches else (actor, key)

    def _choose(self) -> tuple[Actor, Key] | None:
        free = {
            actor: len(load.searches)
            for actor, load in self._actors.items()
            if len(load.searches) < self.in_flight and not load.reserved
        }
        if not free:
            return None
        best: tuple[tuple[int, int, int, int], Actor, Key] | None = None
        ordinary = ((key, search) for key, search in self._waiting.items() if not search.suspect)
        for order, (key, search) in enumerate(islice(ordinary, _WINDOW)):
            depths = self._held.depths(search.blocks)
            for actor, load in free.items():
                held = depths.get(actor, 0)
                elsewhere = max((depth for other, depth in depths.items() if other != actor), default=0)
                rank = held - elsewhere, held, -load, -order
                if best is None or rank > best[0]:
                    best = rank, actor, key
        return None if best is None else best[1:]
