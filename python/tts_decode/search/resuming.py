"""What was recorded of a search is handed out again, in the order and the company in which it came.

A search that is resumed makes its calls anew. There are three kinds:

* Recorded ones do what is left of their work, such as computing KV, and wait for their turn. Entries are
  handed out in the journal's order. What was answered in one tick of the decoder is handed out together, and
  what that leads to is done before the next.
* Those that were under way when the search was interrupted run again, as far as they were, and are held.
* New ones wait.

When all is handed out and all calls are in place, the search is where it was: it is live. Up to there the
budget counts nothing: it is told what was spent.
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

# Loop cycles in which nothing happens after which nothing more is to come of what was handed out: as many as
# a decoder waits before a tick.
_QUIET_CYCLES = 6
_BUSY_CYCLES = 1000  # quiet cycles after which the loop sleeps between them
_IDLE = 0.001  # seconds of such a sleep
# Seconds of sleep after which a replay is given up in which nothing happens and no call is at work. They are
# counted by sleeps, so a machine that is late is not out of patience.
PATIENCE = 30.0


class Spent(NamedTuple):
    """What the search's budget had spent."""

    tokens: int
    cost: float
    seconds: float


class UnderWay(NamedTuple):
    """A request of a call that was not over: the call, the request's path in that, where it was."""

    call: str
    path: str
    hold: Hold


@dataclass(frozen=True)
class Entry:
    """What a journal holds of one call.

    together: whether no tick lay between it and the entry before. under_way: requests of other calls, in the
    order in which they waited. cancelled: those of calls that were cancelled since the entry before.
    """

    turn: int  # its place in the journal
    data: dict[str, Any]
    spent: Spent
    together: bool
    under_way: tuple[UnderWay, ...]
    cancelled: tuple[UnderWay, ...]


class Turns:
    """The calls of one search: hands out recorded ones, and knows how far those under way are.

    Attributes:
        live: whether all that is recorded was handed out.
    """

    def __init__(self, entries: Sequence[Entry], budget: Budget | None, give_up: Callable[[int], Exception]):
        self.live = not entries
        self._entries = entries
        self._budget = budget
        self._give_up = give_up
        self._calls: dict[str, Call] = {}  # under way
        self._cancelled: list[UnderWay] = []  # since the entry before
        self._holds: dict[str, dict[str, Hold]] = {}  # of calls that came to no end, by key and path
        last = entries[-1].under_way if entries else ()
        self._awaited = {call for call, _, _ in last}  # before the last entries are handed out
        for call, path, hold in (*(request for entry in entries for request in entry.cancelled), *last):
            self._holds.setdefault(call, {})[path] = hold
        self._turn = 0
        self._together = False  # whether what came together with the entry before is due at once
        self._waiting: dict[int, asyncio.Future[None]] = {}  # callers by their turn
        self._woken: set[asyncio.Future[None]] = set()  # those of them who have not gone on yet
        self._new: list[_Caller] = []  # who begin when all was handed out
        self._ended: list[_Caller] = []  # who go on then
        self._passed: set[int] = set()  # entries whose caller was cancelled
        self._arrivals = 0
        self._clock = Clock()
        self._ticks = 0  # of the clock, at the last entry
        self._error: Exception | None = None  # with which the replay was given up
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
        """A recorded call, which has this work left; returns when it is the entry's turn."""
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
        """A call that is not recorded: it was under way when the search was interrupted, or is new. Its
        result, and the tokens that a prompt shares."""
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
        """What an entry that is written now says of its time; `Entry` reads it."""
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
        if at_once:  # behind those
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
        """Hands out entry after entry, each when nothing more is to come of those before. Gives the replay up
        when nothing can happen any more; calls at work are waited for."""
        quiet, seen = 0, self._events()  # quiet: loop cycles in which nothing happened
        while not self.live:
            await asyncio.sleep(0 if quiet < _BUSY_CYCLES else _IDLE)
            quiet += 1
            if self._events() != seen:
                quiet, seen = 0, self._events()
            elif quiet >= _QUIET_CYCLES and not any(call.at_work for call in self._calls.values()):
                patient = (quiet - _BUSY_CYCLES) * _IDLE < PATIENCE
                # A scorer with a state of its own may ask for less the second time.
                in_place = quiet >= _BUSY_CYCLES or all(call.in_place for call in self._calls.values())
                if not patient or (in_place and not self._awaits_calls()):
                    self._hand_out(first=True)
                if not patient and self._events() == seen and not self.live:
                    self._fail(self._give_up(self._turn))
                    return

    def _events(self) -> tuple[int, int, int, int]:
        """Counts of all that happens: one of them rises whenever the replay gets further."""
        return self._arrivals, self._turn, self._clock.requests, self._clock.ticks

    def _awaits_calls(self) -> bool:
        """Whether the next entry is one of the last, which came together, and calls are not made yet that
        were under way when these came."""
        return bool(self._awaited) and all(entry.together for entry in self._entries[self._turn + 1 :])

    def _hand_out(self, *, first: bool = False) -> None:
        """What came together is handed out together, as far as its callers wait. first: the next entry is,
        whether it came with the one before or not."""
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
        """Every call that waits, or that is made from now on, ends with the error."""
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
    """As a journal has it, in its place in the order."""
    return (*request[:2], *request.hold[:3])


_Caller = tuple[int, "asyncio.Future[None]"]  # in order


def _wake(caller: asyncio.Future[None]) -> None:
    if not caller.done():
        caller.set_result(None)
