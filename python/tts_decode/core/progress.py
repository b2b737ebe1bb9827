"""Calls of a search, the requests that each makes of decoders, and how far these are.

A journal notes how far every request under way is. A search that is resumed makes these requests again: each
runs up to there and is held until the others are where they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple, Protocol

from .running import next_event, own_place


class Hold(NamedTuple):
    """Where a request is, or is to be held.

    tokens: of its branch; 0 for a prompt that has none yet. resident: those of them whose KV is computed.
    shared: those of a prompt that were resident before. order: its place among the requests of its search
    that wait for a decoder.
    """

    tokens: int
    resident: int
    shared: int
    order: int


class Tracked(Protocol):
    """A request as its search sees it.

    Attributes:
        call: of the search. hold: where the request stops until its search goes on; None: nowhere.
        share_limit: tokens at most that a prompt shares; None: what is resident. shared: those that it does.
        order: its place among the requests that wait. seen: whether a decoder looked at it.
        waits: whether it is not done. held: whether it stops where it is.
        progress: where to hold the same request in another process, so that it is as far.
    """

    call: Call | None
    hold: Hold | None
    share_limit: int | None
    shared: int
    order: int
    seen: bool

    @property
    def waits(self) -> bool: ...
    @property
    def held(self) -> bool: ...
    @property
    def progress(self) -> Hold: ...


class Clock:
    """Of one search. ticked: whether a decoder worked for it since the last entry of its journal; None: none
    ever did, as on engines of others."""

    ticked: bool | None = None

    def note_entry(self) -> None:
        if self.ticked:
            self.ticked = False


class Call:
    """One call of a search.

    Args:
        clock: the search's.
        holds: where its requests are held, by their paths; a request that is not listed is held where it
            begins. None: nothing is held.
        shared: tokens at most that a prompt shares; None: what is resident.

    Attributes:
        requests: by their paths, which tell what a request is in the call, whatever takes how long.
        ended: whether it only waits for its turn.
    """

    def __init__(
        self, clock: Clock, holds: Mapping[str, Hold] | None = None, shared: int | None = None
    ) -> None:
        self.clock = clock
        self.requests: dict[str, Tracked] = {}
        self.ended = False
        self._holds = holds
        self._released: list[Callable[[], None]] = []
        self._shared = shared

    @contextmanager
    def current(self) -> Iterator[None]:
        """The requests made inside are its own, those of tasks that are started there too."""
        before = current_call.set(self)
        try:
            with own_place():
                yield
        finally:
            current_call.reset(before)

    def add(self, request: Tracked, released: Callable[[], None]) -> None:
        """released: called when it is not held any more."""
        path = ".".join(map(str, next_event()))
        self.requests[path] = request
        request.call, request.share_limit = self, self._shared
        if self._holds is not None:
            self._released.append(released)
            request.hold = self._holds.get(path, _BEGINNING)
            if request.hold.tokens:
                request.share_limit = request.hold.shared

    def go_on(self) -> None:
        """Nothing is held any more."""
        self._holds = None
        for request in self.requests.values():
            if request.hold is not None and request.hold is not _BEGINNING:
                request.seen, request.order = True, request.hold.order
            request.hold = None
        for released in self._released:
            released()

    @property
    def in_place(self) -> bool:
        """Whether it can do no more before it goes on."""
        waiting = [request for request in self.requests.values() if request.waits]
        return self.ended or (bool(waiting) and all(request.held for request in waiting))


current_call: ContextVar[Call | None] = ContextVar("call", default=None)  # whose requests are made now
_BEGINNING = Hold(0, 0, 0, 1 << 30)  # last in order
