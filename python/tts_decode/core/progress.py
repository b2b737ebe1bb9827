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
        waits: whether it is not done. held: whether it stops where it is, for its hold; every other request
            that waits gets further in each tick that has room for it.
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
    def fail(self, error: Exception) -> None: ...


class Clock:
    """What decoders did for one search so far; it stands still on engines of others.

    Attributes:
        requests: that they got. ticks: of them, one for every request that one served.
    """

    requests = 0
    ticks = 0


class Call:
    """One call of a search.

    Args:
        clock: the search's.
        holds: where its requests are held, by their paths; a request that is not listed is held where it
            begins. None: nothing is held.
        shared: tokens at most that a prompt shares; None: what is resident.

    Attributes:
        requests: by their paths, which tell what a request is in the call, whatever takes how long.
        ended: whether its work is done.
        tokens: that it took out of the budget all at once, on an engine of others. Should the search be
            interrupted before the call returns, they are sampled again.
    """

    def __init__(
        self, clock: Clock, holds: Mapping[str, Hold] | None = None, shared: int | None = None
    ) -> None:
        self.clock = clock
        self.requests: dict[str, Tracked] = {}
        self.ended = False
        self.tokens = 0
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
        self.clock.requests += 1
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

    def fail(self, error: Exception) -> None:
        """Ends its requests with the error."""
        for request in self.requests.values():
            if request.waits:
                request.fail(error)

    @property
    def in_place(self) -> bool:
        """Whether it is as far as it was: its work is done, or it made each request at which it is held, and
        those that are not done are held. A call that is not held has to end."""
        if self.ended or self._holds is None:
            return self.ended
        return self._holds.keys() <= self.requests.keys() and not self._served

    @property
    def at_work(self) -> bool:
        """Whether it is not in place and may get there by itself: a decoder serves it, or it waits for
        something else, such as a server or a thread, which takes what time it takes."""
        stopped = not self._served and any(request.waits for request in self.requests.values())
        return not self.in_place and not stopped

    @property
    def _served(self) -> bool:
        return any(request.waits and not request.held for request in self.requests.values())


current_call: ContextVar[Call | None] = ContextVar("call", default=None)  # whose requests are made now
_BEGINNING = Hold(0, 0, 0, 1 << 30)  # last in order
