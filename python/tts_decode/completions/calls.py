"""Calls of the engine: counted, timed, limited in number, and within a budget's tokens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NoReturn
from weakref import WeakSet

from tts_kernels.checks import a_type

from ..core.budget import Budget
from ..core.progress import current_call
from ..errors import EngineError, UnsupportedByEngineError
from .completion import Complete, Completion, CompletionRequest, Score


class Calls:
    """The engine's functions, and the calls made of them.

    Attributes:
        completions: number of calls. tokens: of them all.
        scores: whether the engine scores given text. logprobs: whether completions are asked for them.
        branches: live ones. function: what completes.
    """

    def __init__(
        self, complete: Complete, score: Score | None, max_concurrency: int | None, *, logprobs: bool
    ) -> None:
        self.logprobs = logprobs
        self.scores = score is not None
        self.completions = self.tokens = 0
        self.branches: WeakSet[Any] = WeakSet()
        self._ids = 0
        self.function = complete
        self._score = score
        self._max_concurrency = max_concurrency
        self._running = 0
        self._seconds = self._since = 0.0
        self._slots: tuple[asyncio.AbstractEventLoop, asyncio.Semaphore] | None = None

    def next_id(self) -> int:
        """Returns an id for a branch."""
        self._ids += 1
        return self._ids

    async def complete(self, request: CompletionRequest) -> Completion:
        async with self._slot():
            completion = await self.function(request)
        if not isinstance(completion, Completion):
            raise TypeError(f"complete: got {a_type(completion)} from it, expected a Completion")
        request.check(completion)
        self.completions += 1
        self.tokens += len(completion.ids)
        return completion

    async def logprobs_of(self, prompt: str, text: str) -> list[float]:
        """Returns one log-probability per token of `text` after `prompt`, nats."""
        if self._score is None:
            unsupported("log-probabilities of a given text", "make the decoder with score=")
        async with self._slot():
            rows = await self._score(prompt, [text])
        if len(rows) != 1 or not len(rows[0]):
            raise EngineError(f"score returned {rows!r} for one continuation; expected one list of numbers")
        return [float(value) for value in rows[0]]

    @property
    def seconds(self) -> float:
        """Time during which any call was running."""
        return self._seconds + (time.perf_counter() - self._since if self._running else 0.0)

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        """Holds a place among the running calls. A semaphore serves one event loop only."""
        loop = asyncio.get_running_loop()
        if self._slots is None or self._slots[0] is not loop:
            self._slots = loop, asyncio.Semaphore(self._max_concurrency or 1 << 30)
        async with self._slots[1]:
            if not self._running:
                self._since = time.perf_counter()
            self._running += 1
            try:
                yield
            finally:
                self._running -= 1
                if not self._running:
                    self._seconds += time.perf_counter() - self._since


class TokenAllowance:
    """Grants a budget's tokens to running calls, so that together they stay within it."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self._granted = 0  # to running calls
        self._waiting: list[asyncio.Future[None]] = []

    async def take(self, wanted: int) -> int:
        """Waits until `wanted` tokens are free, or no running call might return some.

        Returns how many the call may use, 0 if the budget is used up.
        """
        while True:
            left = self.budget.remaining_tokens
            if self.budget.exhausted:
                return 0
            if left is None or not self._granted or left - self._granted >= wanted:
                granted = wanted if left is None else min(left, wanted)
                self._granted += granted
                return granted
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            try:
                await waiter
            finally:
                if waiter in self._waiting:
                    self._waiting.remove(waiter)

    def give_back(self, granted: int, used: int) -> None:
        self._granted -= granted
        before = self.budget.tokens_used
        self.budget.count(used)
        if (call := current_call.get()) is not None:
            call.tokens += self.budget.tokens_used - before
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)


def unsupported(what: str, instead: str) -> NoReturn:
    raise UnsupportedByEngineError(f"a text engine does not offer {what}: {instead}")


def unsupported_call(name: str) -> NoReturn:
    unsupported(name, "it needs a model on a TreeDecoder")
