"""Runs any strategy without an event loop: it says what it waits for, and is told the answers.

    search = AskTell(beam_search, "Question: ...", n=8)
    while not search.done:
        for request in search.ask():
            search.tell(request.id, answer(request))
    print(search.result.answer)

A strategy may cancel requests, for example when it takes the first answer to finish. `tell` then raises
`RequestWithdrawnError` for the later requests of the batch.
"""

from __future__ import annotations

import asyncio
import math
import selectors
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..completions.branch import TextBranch
from ..completions.completion import Completion, CompletionRequest
from ..completions.decoder import Messages, TextDecoder
from ..core.budget import Budget
from ..core.params import SamplingParams
from ..errors import TTSError
from . import Journal, SearchRun

if TYPE_CHECKING:
    from types import TracebackType

    from .result import SearchResult

Answer = Completion | Sequence[float] | Exception


class RequestWithdrawnError(TTSError, LookupError):
    """The strategy no longer waits for this answer: it cancelled the request, or it has ended."""


@dataclass(frozen=True)
class ScoreRequest:
    """Texts to score. prompts: what each was generated from. The answer is one finite number per text."""

    id: int
    prompts: tuple[str, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class LogprobRequest:
    """A text to score after `prompt`. The answer is one log-probability per token, nats."""

    id: int
    prompt: str
    text: str


Request = CompletionRequest | ScoreRequest | LogprobRequest


class AskTell:
    """One search, driven by its caller.

    Args:
        strategy: one of `tts_decode.search`, or any async function of a root branch and options.
        prompt: text or chat messages.
        sampling, budget: of the root.
        render: turns chat messages into text; see `TextDecoder`.
        logprobs_of: whether to ask for log-probabilities of given texts too, including texts that the
            strategy forces; without it, a strategy that needs them gets `UnsupportedByEngineError`.
        journal: keeps the answers; a search resumed from it asks only for those it lacks. For strategies of
            `tts_decode.search`.
        options: the strategy's. With `scorer="ask"`, or if it needs a scorer and none is given, it asks for
            scores too.

    Do not use it where an event loop is already running: await the strategy on a `TextDecoder` instead.

    The strategy runs inside `ask` and `tell`, in the caller's thread, until it waits for answers. They block
    only while it waits for something else, such as its own scorer.

    An error that the strategy raises comes out of the `ask` or `tell` in which it happens, and of every later
    one.

    Attributes:
        done: whether the search has ended.
    """

    def __init__(
        self,
        strategy: Callable[..., Awaitable[SearchResult]],
        prompt: str | Messages,
        /,
        *,
        sampling: SamplingParams | None = None,
        budget: Budget | None = None,
        render: Callable[[Messages], str] | None = None,
        logprobs_of: bool = False,
        journal: Journal | None = None,
        **options: Any,
    ) -> None:
        if _loop_is_running():
            raise RuntimeError(
                "an event loop runs here already: await the strategy on a TextDecoder's root instead"
            )
        missing = getattr(strategy, "needs_scorer", False) and "scorer" not in options
        if missing or options.get("scorer") == "ask":
            options["scorer"] = self._external_scorer
        score = self._logprobs_of if logprobs_of else None
        decoder = TextDecoder(self._complete, score=score, render=render)
        self._open: dict[int, tuple[Request, asyncio.Future[Any]]] = {}
        self._told: dict[int, tuple[Request, Answer]] = {}
        self._asked = 0  # ids assigned so far
        self._closing = False

        async def search() -> SearchResult:
            root = await decoder.root(prompt, sampling, budget)
            try:
                start = root if journal is None else SearchRun(root, journal=journal)
                return await strategy(start, **options)
            finally:
                root.release()

        self._loop = asyncio.SelectorEventLoop(_Selector(self._hand_over))
        self._task = self._loop.create_task(search())

    # -- the caller's side

    @property
    def done(self) -> bool:
        return self._task.done()

    @property
    def result(self) -> SearchResult:
        """The strategy's result; raises what the strategy raised, or RuntimeError before the end."""
        if not self._task.done():
            raise RuntimeError(f"the search has not ended: {len(self._open)} requests are open")
        if self._task.cancelled():
            raise RuntimeError("the search was closed before its end")
        return self._task.result()

    def ask(self) -> list[Request]:
        """Returns everything that the strategy waits for now, in the order of its requests; empty when done.

        Requests returned earlier and not answered yet are included, with the same id.
        """
        self._run()
        return [request for request, _ in self._open.values()]

    def tell(self, id: int, answer: Answer) -> None:
        """Answers a request; the strategy continues at once as far as it can.

        Args:
            id: of the request. Answers may come in any order; answering a request again changes nothing.
            answer: a `Completion`, the numbers, or an exception that the strategy receives instead of an
                answer.

        Raises:
            LookupError: no request has this id. RequestWithdrawnError: the answer came too late.
            TypeError, ValueError, EngineError: the answer does not fit the request, which stays open.
        """
        if id in self._told:
            request, before = self._told[id]
            if _checked(request, answer) != before:
                raise ValueError(f"id {id}: got another answer, expected the one that it has already")
            return
        if id not in self._open:
            if not isinstance(id, int) or not 1 <= id <= self._asked:
                raise LookupError(f"id={id!r} was never asked; open are {sorted(self._open)}")
            raise RequestWithdrawnError(f"id={id}: the strategy does not wait for this answer any more")
        request, future = self._open[id]
        answer = _checked(request, answer)
        del self._open[id]
        self._told[id] = request, answer
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)
        self._run()

    def close(self) -> None:
        """Cancels the search if it has not ended. Open requests are withdrawn."""
        if self._loop.is_closed():
            return
        self._closing = True
        self._task.cancel()
        self._loop.run_until_complete(asyncio.wait([self._task]))
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    def __enter__(self) -> AskTell:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- the strategy's side

    async def _complete(self, request: CompletionRequest) -> Completion:
        self._asked += 1
        completion: Completion = await self._answer(replace(request, id=self._asked))
        return completion

    async def _external_scorer(self, branches: Sequence[TextBranch]) -> Sequence[float]:
        self._asked += 1
        texts = tuple(branch.text for branch in branches)
        prompts = tuple(
            branch.full_text[: len(branch.full_text) - len(text)]
            for branch, text in zip(branches, texts, strict=True)
        )
        scores: Sequence[float] = await self._answer(ScoreRequest(self._asked, prompts, texts))
        return scores

    async def _logprobs_of(self, prompt: str, continuations: Sequence[str]) -> list[Sequence[float]]:
        rows = []
        for text in continuations:
            self._asked += 1
            rows.append(await self._answer(LogprobRequest(self._asked, prompt, text)))
        return rows

    async def _answer(self, request: Request) -> Any:
        future = self._loop.create_future()
        self._open[request.id] = request, future
        try:
            return await future
        finally:
            self._open.pop(request.id, None)  # withdrawn, unless `tell` came first

    # -- turns

    def _run(self) -> None:
        """Runs the strategy until it waits for answers, or to its end."""
        if not self._task.done():
            self._loop.run_forever()
        if self._task.done():
            self.close()
            if not self._task.cancelled():
                self._task.result()  # raises what the strategy raised

    def _hand_over(self) -> bool:
        """Called when nothing is left to run: whether it is the caller's turn."""
        if self._closing or not (self._open or self._task.done()):
            return False
        self._loop.stop()
        return True


class _Selector(selectors.DefaultSelector):
    """Waits for the event loop when nothing is left to run, which is when a turn may end."""

    def __init__(self, hand_over: Callable[[], bool]) -> None:
        super().__init__()
        self._hand_over = hand_over

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if (timeout is None or timeout > 0) and self._hand_over():
            timeout = 0
        return super().select(timeout)


def _loop_is_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _checked(request: Request, answer: Any) -> Answer:
    """Returns the answer, numbers as a list of floats, if it fits the request."""
    if isinstance(answer, Exception):
        return answer
    if isinstance(request, CompletionRequest):
        if not isinstance(answer, Completion):
            raise TypeError(f"id {request.id}: got {type(answer).__name__}, expected a Completion")
        request.check(answer)
        return answer
    if isinstance(answer, str) or not hasattr(answer, "__len__"):
        raise TypeError(f"id {request.id}: got {type(answer).__name__}, expected a list of numbers")
    numbers = [float(number) for number in answer]
    if isinstance(request, ScoreRequest) and len(numbers) != len(request.texts):
        raise ValueError(
            f"id {request.id}: got {len(numbers)} scores, expected {len(request.texts)}, one a text"
        )
    if not numbers or not all(map(math.isfinite, numbers)):
        raise ValueError(f"id {request.id}: got {numbers}, expected finite numbers")
    return numbers
