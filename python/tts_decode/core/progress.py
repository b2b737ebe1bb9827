"""Calls of a search, the requests that each call makes to decoders, and their progress.

A journal records the progress of every pending request. A resumed search makes these requests again: each one
runs to its recorded place and is held there until the others have reached theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple, Protocol

from .running import next_event, own_place


class Hold(NamedTuple):
    """The place of a request, or the place where it will be held.

    tokens: of its branch; 0 for a prompt that has none yet. resident: tokens whose KV is computed.
    shared: tokens of a prompt that were already resident. order: its place among the requests of its search
    that wait for a decoder.
    """

    tokens: int
    resident: int
    shared: int
    order: int


class Tracked(Protocol):
    """A request as its search sees it.

    Attributes:
        call: of the search. hold: where the request stops until its search continues; None: nowhere.
        share_limit: maximum number of tokens that a prompt shares; None: all resident ones. shared: tokens
            that it does share.
        order: its place among the waiting requests. seen: whether a decoder looked at it.
        waits: whether it is not done. held: whether its hold stops it; every other waiting request advances
            in each tick that has room for it.
        progress: where to hold the same request in another process to reach the same place.
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
    """What decoders have done for one search; external engines do not advance it.

    Attributes:
        requests: received. ticks: served, one for each request that a decoder's tick served.
    """

    requests = 0
    ticks = 0


class Call:
    """One call of a search.

    Args:
        clock: the search's.
        holds: where its requests are held, by path; an unlisted request is held where it begins. None:
            nothing is held.
        shared: maximum number of tokens that a prompt shares; None: all resident ones.

    Attributes:
        requests: by path, which identifies a request in the call whatever the timing.
        ended: whether its work is done.
        tokens: number taken out of the budget at once, on an external engine. If the search is interrupted
            before the call returns, they are sampled again.
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
        """Makes the requests inside its own, including those of tasks started there."""
        before = current_call.set(self)
        try:
            with own_place():
                yield
        finally:
            current_call.reset(before)

    def add(self, request: Tracked, released: Callable[[], None]) -> None:
        """Adds a request. released: called when the request is no longer held."""
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
        """Holds nothing any more."""
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
        """Whether the call is as far as it was.

        Its work is done, or it made each request at which it is held, and those that are not done are held. A
        call that is not held has to end.
        """
        if self.ended or self._holds is None:
            return self.ended
        return self._holds.keys() <= self.requests.keys() and not self._served

    @property
    def at_work(self) -> bool:
        """Whether it is not in place but may get there by itself.

        A decoder serves it, or it waits for something else, such as a server or a thread, for as long as that
        takes.
        """
        stopped = not self._served and any(request.waits for request in self.requests.values())
        return not self.in_place and not stopped

    @property
    def _served(self) -> bool:
        return any(request.waits and not request.held for request in self.requests.values())


current_call: ContextVar[Call | None] = ContextVar("call", default=None)  # the call that makes requests now
_BEGINNING = Hold(0, 0, 0, 1 << 30)  # last in order
