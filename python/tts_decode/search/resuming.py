"""Returns the recorded results of a search again, in the same order and grouping.

A resumed search makes its calls anew. There are three kinds:

* Recorded ones do what is left of their work, such as computing KV, and wait for their turn. Entries are
handed out in the journal's order. What was answered in one tick of the decoder is handed out together, and
its consequences finish before the next entry.
* Those that were pending when the search was interrupted run again to where they were, and are held.
* New ones wait.

When everything is handed out and all calls are in place, the search is where it was: it is live. Until then
the budget counts nothing: it is told what was spent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from ..core.progress import Call, Clock, Hold

if TYPE_CHECKING:
    from ..core.budget import Budget

T = TypeVar("T")

# After this many loop cycles in which nothing happens, entries that were handed out have no more effects: as
# many as a decoder waits before a tick.
_QUIET_CYCLES = 6
_BUSY_CYCLES = 1000  # quiet cycles after which the loop sleeps between them
_IDLE = 0.001  # seconds of such a sleep
# Seconds of sleep after which a replay is given up if nothing happens and no call is at work. They are
# counted in sleeps, so a slow machine gets more time.
PATIENCE = 30.0


class Spent(NamedTuple):
    """What the search's budget had spent."""

    tokens: int
    cost: float
    seconds: float


class UnderWay(NamedTuple):
    """A request of a pending call: the call, the request's path in it, and its place."""

    call: str
    path: str
    hold: Hold


@dataclass(frozen=True)
class Entry:
    """What a journal holds of one call.

    together: whether no tick lies between it and the previous entry. under_way: requests of other calls, in
    the order in which they waited. cancelled: requests of calls that were cancelled since the previous entry.
    """

    turn: int  # its place in the journal
    data: dict[str, Any]
    spent: Spent
    together: bool
    under_way: tuple[UnderWay, ...]
    cancelled: tuple[UnderWay, ...]


class Turns:
    """The calls of one search: hands out recorded ones, and tracks the progress of pending ones.

    Attributes:
        live: whether everything recorded was handed out.
    """

    def __init__(self, entries: Sequence[Entry], budget: Budget | None, give_up: Callable[[int], Exception]):
        self.live = not entries
        self._entries = entries
        self._budget = budget
        self._give_up = give_up
        self._calls: dict[str, Call] = {}  # under way
        self._cancelled: list[UnderWay] = []  # since the previous entry
        self._holds: dict[str, dict[str, Hold]] = {}  # of calls that did not end, by key and path
        last = entries[-1].under_way if entries else ()
        self._awaited = {call for call, _, _ in last}  # must be made before the last entries are handed out
        for call, path, hold in (*(request for entry in entries for request in entry.cancelled), *last):
            self._holds.setdefault(call, {})[path] = hold
        self._turn = 0
        self._together = False  # whether what came together with the previous entry is due at once
        self._waiting: dict[int, asyncio.Future[None]] = {}  # callers by their turn
        self._woken: set[asyncio.Future[None]] = set()  # those of them that have not continued yet
        self._new: list[_Caller] = []  # callers that begin when everything was handed out
        self._ended: list[_Caller] = []  # callers that continue then
        self._passed: set[int] = set()  # entries whose caller was cancelled
        self._arrivals = 0
        self._clock = Clock()
        self._ticks = 0  # the clock's, at the last entry
        self._error: Exception | None = None  # the error that ended the replay
        self._task: asyncio.Task[None] | None = None
        if not self.live:
            if budget is not None:
                budget.pause()
            loop = asyncio.get_running_loop()
            self._task = asyncio.Task(self._hand_out_all(), loop=loop)

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
        if self._budget is not None:
            self._budget.go_on()

    # -- calls

    async def replay(self, entry: Entry, key: str, work: Callable[[], Awaitable[T]]) -> T:
        """Runs the remaining work of a recorded call; returns when it is the entry's turn."""
        self._check()
        try:
            result = await self._run(key, work, Call(self._clock, shared=entry.data.get("shared")))
            await self._take_turn(entry)
        except BaseException:
            self._passed.add(entry.turn)
            raise
        finally:
            del self._calls[key]
        self._set_used(entry.spent)
        return result

    async def make(self, key: str, work: Callable[[], Awaitable[T]]) -> tuple[T, int]:
        """Makes a call that is not recorded: it was pending at the interruption, or is new.

        Returns its result, and the number of tokens that a prompt shares.
        """
        self._check()
        holds = self._holds.get(key)
        self._awaited.discard(key)
        if not self.live and holds is None:
            await self._until_live(self._new)
        call = Call(self._clock, None if self.live else holds)
        try:
            try:
                result = await self._run(key, work, call)
            except Exception:
                await self._until_live(self._ended, holds)
                raise
            await self._until_live(self._ended, holds)
        except asyncio.CancelledError:
            if self.live:
                self._cancelled += _requests(key, call)
            raise
        finally:
            del self._calls[key]
        return result, max((request.shared for request in call.requests.values()), default=0)

    def note(self) -> dict[str, Any]:
        """Returns what an entry written now records of its time; `Entry` reads it."""
        budget, ticks = self._budget, self._clock.ticks
        spent = Spent(0, 0.0, 0.0)
        if budget is not None:
            again = sum(call.tokens for call in self._calls.values())
            spent = Spent(budget.tokens_used - again, budget.cost_used, budget.seconds_used)
        under_way = [request for key, call in self._calls.items() for request in _requests(key, call)]
        under_way.sort(key=lambda request: request.hold.order)
        noted = {
            "spent": spent,
            "together": 0 < ticks == self._ticks,
            "under_way": [_row(request) for request in under_way],
            "cancelled": [_row(request) for request in self._cancelled],
        }
        self._ticks = ticks
        self._cancelled = []
        return noted

    async def _run(self, key: str, work: Callable[[], Awaitable[T]], call: Call) -> T:
        self._arrivals += 1
        self._calls[key] = call
        try:
            with call.current():
                return await work()
        finally:
            call.ended = True
            self._arrivals += 1

    # -- order

    async def _take_turn(self, entry: Entry) -> None:
        self._check()
        at_once = self._together and entry.turn == self._turn and entry.together
        if at_once and not self._woken:
            self._turn += 1
            self._hand_out()
            return
        loop = asyncio.get_running_loop()
        caller = self._waiting[entry.turn] = loop.create_future()
        self._arrivals += 1
        if at_once:  # after those
            loop.call_soon(self._hand_out)
        try:
            await caller
        finally:
            self._woken.discard(caller)

    async def _until_live(self, callers: list[_Caller], holds: Mapping[str, Hold] | None = None) -> None:
        if self.live:
            return
        self._check()
        order = max((hold.order for hold in (holds or {}).values()), default=0)
        caller = asyncio.get_running_loop().create_future()
        callers.append((order, caller))
        self._arrivals += 1
        await caller

    async def _hand_out_all(self) -> None:
        """Hands out the entries in order, each when the earlier ones have no more consequences.

        Gives up the replay when nothing can happen any more, but waits for calls at work.
        """
        quiet, seen = 0, self._events()  # quiet: loop cycles without events
        while not self.live:
            await asyncio.sleep(0 if quiet < _BUSY_CYCLES else _IDLE)
            quiet += 1
            if self._events() != seen:
                quiet, seen = 0, self._events()
            elif quiet >= _QUIET_CYCLES and not any(call.at_work for call in self._calls.values()):
                patient = (quiet - _BUSY_CYCLES) * _IDLE < PATIENCE
                # A stateful scorer may ask for less the second time.
                in_place = quiet >= _BUSY_CYCLES or all(call.in_place for call in self._calls.values())
                if not patient or (in_place and not self._awaits_calls()):
                    self._hand_out(first=True)
                if not patient and self._events() == seen and not self.live:
                    self._fail(self._give_up(self._turn))
                    return

    def _events(self) -> tuple[int, int, int, int]:
        """Returns counts of all events: one of them rises whenever the replay advances."""
        return self._arrivals, self._turn, self._clock.requests, self._clock.ticks

    def _awaits_calls(self) -> bool:
        """Whether the next entry must wait for calls that are not made yet.

        That is so if it is one of the last entries, which came together, and these calls were pending when
        they came.
        """
        return bool(self._awaited) and all(entry.together for entry in self._entries[self._turn + 1 :])

    def _hand_out(self, *, first: bool = False) -> None:
        """Hands out together what came together, as far as its callers wait.

        first: hands out the next entry, whether or not it came with the previous one.
        """
        if self.live or self._error is not None:
            return
        self._together = not first
        while self._turn < len(self._entries):
            if self._turn not in self._passed:
                if not (first or self._entries[self._turn].together) or self._turn not in self._waiting:
                    return
                caller = self._waiting.pop(self._turn)
                self._woken.add(caller)
                _wake(caller)
                first, self._together = False, True
            self._turn += 1
        self._go_live()

    def _go_live(self) -> None:
        self.live = True
        for call in self._calls.values():
            call.go_on()
        self._set_used(self._entries[-1].spent)
        if self._budget is not None:
            self._budget.go_on()
        self._ticks = self._clock.ticks
        for _, caller in [*self._new, *sorted(self._ended, key=lambda ended: ended[0])]:
            _wake(caller)

    def _fail(self, error: Exception) -> None:
        """Ends every waiting and future call with the error."""
        self._error = error
        for caller in [*self._waiting.values(), *(caller for _, caller in (*self._new, *self._ended))]:
            if not caller.done():
                caller.set_exception(error)
        for call in self._calls.values():
            call.fail(error)

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _set_used(self, spent: Spent) -> None:
        if self._budget is not None:
            self._budget.set_used(*spent)


def _requests(key: str, call: Call) -> list[UnderWay]:
    return [UnderWay(key, path, made.progress) for path, made in call.requests.items() if made.seen]


def _row(request: UnderWay) -> tuple[str | int, ...]:
    """Returns a request as a journal's row, in its place in the order."""
    return (*request[:2], *request.hold[:3])


_Caller = tuple[int, "asyncio.Future[None]"]  # in order


def _wake(caller: asyncio.Future[None]) -> None:
    if not caller.done():
        caller.set_result(None)
