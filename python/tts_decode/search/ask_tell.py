"""Any strategy without an event loop of the caller's: it says what it waits for, and is told.

    search = AskTell(beam_search, "Question: ...", n=8)
    while not search.done:
        for request in search.ask():
            search.tell(request.id, answer(request))
    print(search.result.answer)

A strategy that cancels requests, such as one that takes the first answer to finish, makes `tell` raise
`RequestWithdrawnError` for those of a batch that come after.
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
    """The strategy does not wait for this answer any more: it cancelled the request, or it is over."""


@dataclass(frozen=True)
class ScoreRequest:
    """Texts to score. prompts: what each was generated from. The answer is one finite number a text."""

    id: int
    prompts: tuple[str, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class LogprobRequest:
    """A text to find the probability of after `prompt`. The answer is one log-probability a token, nats."""

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
        render: text of chat messages; see `TextDecoder`.
        logprobs_of: whether log-probabilities of given texts are asked for too, also of those that the
            strategy forces; else a strategy that cannot do without meets `UnsupportedByEngineError`.
        journal: keeps the answers; a search that is resumed from it asks for those that it lacks only. For
            strategies of `tts_decode.search`.
        options: the strategy's. Where it needs a scorer and none is given, or `scorer="ask"`, scores are
            asked for too.

    Not for a place where an event loop runs already: there, await the strategy on a `TextDecoder`.

    The strategy runs inside `ask` and `tell`, in the caller's thread, until it waits for answers; they only
    block while it waits for something else, as a scorer of its own.

    What the strategy raises comes out of the `ask` or `tell` in which it happens, and of every later one.

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
        self._asked = 0  # ids given out
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
        """What the strategy returned; raises what it raised, or RuntimeError before the end."""
        if not self._task.done():
            raise RuntimeError(f"the search has not ended: {len(self._open)} requests are open")
        if self._task.cancelled():
            raise RuntimeError("the search was closed before its end")
        return self._task.result()

    def ask(self) -> list[Request]:
        """Everything that the strategy waits for now, in the order in which it asked; empty when it is done.
        What was returned before and not told yet is among it, under the same id."""
        self._run()
        return [request for request, _ in self._open.values()]

    def tell(self, id: int, answer: Answer) -> None:
        """Answers a request; the strategy goes on at once as far as it can.

        Args:
            id: of the request. Answers may come in any order; one given again changes nothing.
            answer: a `Completion`, the numbers, or an exception, which the strategy then meets in place of
                an answer.

        Raises:
            LookupError: nothing was asked under this id. RequestWithdrawnError: the answer came too late.
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
            self._open.pop(request.id, None)  # withdrawn, unless `tell` was first

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
        """Asked when nothing is left to run: whether it is the caller's turn."""
        if self._closing or not (self._open or self._task.done()):
            return False
        self._loop.stop()
        return True


class _Selector(selectors.DefaultSelector):
    """Where an event loop waits once nothing is left to run, which is when a turn may end."""

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
    """The answer, numbers as a list of floats, if it fits the request."""
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
