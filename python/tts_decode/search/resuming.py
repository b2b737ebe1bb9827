"""Time and cost of a search that goes on after an interruption, as if there had been none.

When a search is interrupted, several of its calls are under way, each since another forward of the model. A
resumed search makes these calls anew. So that they end in the order in which they would have ended, and share
their forwards with the same others, each begins as many forwards after the first of them as it did before.
What the search had spent up to its last recorded entry counts as it was recorded; what repeating it costs
does not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..core.running import current_place

if TYPE_CHECKING:
    from ..core.budget import Budget
    from ..core.interfaces import Branch

# Loop cycles. Those who got their recorded answers take a few to come back with their next calls; between two
# forwards of a decoder that is at work lie some ten.
_ARRIVAL_CYCLES, _IDLE_CYCLES = 50, 500


class Moment(NamedTuple):
    """What an entry of a journal says of the time when it was written.

    forwards: of the model since the search began; 0 on engines of others, which tell none.
    tokens, cost, seconds: what the search's budget had spent.
    """

    forwards: int
    tokens: int
    cost: float
    seconds: float


class Timeline:
    """The forwards of one search since it began, those before an interruption included.

    recorded: the moments of the journal's entries, in order.
    """

    def __init__(self, root: Branch, recorded: Sequence[Moment]) -> None:
        self._decoder = root.decoder
        self._budget: Budget | None = root.budget
        self._recorded = recorded
        self._counts = self._decoder.stats().page_bytes > 0  # else an engine of others
        self._begin = self._forwards()  # the decoder's count when the search's was 0
        self._first = self._moment()
        self._told = self._sampled = self._first.tokens  # tokens that the budget was told; see `_count`
        self._starts: list[int] = []  # of the calls that are made anew
        self._restoring: asyncio.Task[None] | None = None

    def now(self) -> Moment:
        """The moment at which a call ended that was not recorded; the running task knows of it."""
        self._finish_restoring()
        moment = self._moment()
        current_place().time = moment.forwards
        return moment

    def replayed(self, moment: Moment) -> None:
        """The running task gets a recorded answer, and finds the budget as it was then."""
        current_place().time = moment.forwards
        self._count()
        self._take_over(moment, moment.tokens)

    async def start(self) -> None:
        """Waits until a call that is not recorded is to begin. All that is recorded was handed out."""
        if not self._recorded:
            return
        start = current_place().time
        if self._restoring is None:
            self._starts.append(start)
            await self._cycles(_ARRIVAL_CYCLES)
        if self._restoring is None:  # all that were interrupted have come: this is the first to go on
            first = min(self._starts)
            self._begin = self._forwards() - first
            self._count()
            before = max(m for m in (self._first, *self._recorded) if m.forwards <= first)
            self._take_over(before, self._sampled)
            self._restoring = asyncio.ensure_future(self._restore())
        await self._until(start)

    def close(self) -> None:
        self._finish_restoring()

    async def _restore(self) -> None:
        """At the moment of the interruption all has been spent that had been spent then. A limit on the cost
        that was reached in that forward has to end its calls too."""
        last = self._recorded[-1]
        await self._until(last.forwards - 1)
        if self._budget is not None:
            self._budget.cost_used = last.cost
        await self._until(last.forwards)
        self._take_over(last, self._moment().tokens)

    def _finish_restoring(self) -> None:
        """No call that was interrupted can have ended before the interruption. The last forward is spared
        where a limit was reached in it."""
        if self._restoring is not None and not self._restoring.done():
            self._restoring.cancel()
            self._take_over(self._recorded[-1], self._moment().tokens)

    def _count(self) -> None:
        """Adds to `_sampled` what the budget counted by itself since it was told a number: the tokens of
        recorded steps, and those that the strategy chose. A recorded number holds tokens of interrupted calls
        too, which are sampled anew."""
        tokens = self._moment().tokens
        self._sampled += tokens - self._told
        self._told = tokens

    def _moment(self) -> Moment:
        forwards, budget = self._forwards() - self._begin, self._budget
        if budget is None:
            return Moment(forwards, 0, 0.0, 0.0)
        return Moment(forwards, budget.tokens_used, budget.cost_used, budget.seconds_used)

    def _take_over(self, moment: Moment, tokens: int) -> None:
        if self._budget is not None:
            self._budget.resume(tokens, moment.cost, moment.seconds)
            self._told = tokens

    async def _until(self, forwards: int) -> None:
        """Waits for that count. Where the decoder does nothing any more, nobody is left to wait for."""
        idle, before = 0, self._forwards()
        while before - self._begin < forwards and idle < _IDLE_CYCLES:
            await asyncio.sleep(0)
            idle, before = (idle + 1 if self._forwards() == before else 0), self._forwards()

    async def _cycles(self, count: int) -> None:
        for _ in range(count):
            await asyncio.sleep(0)

    def _forwards(self) -> int:
        return self._decoder.stats().steps if self._counts else 0
