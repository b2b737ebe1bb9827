"""The pieces of a step, as its tokens come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

from ..core.detokenizer import text_stream
from ..core.step import Step, StepPiece
from .live_path import LivePath
from .scheduler import Scheduler
from .step_request import StepRequest


async def step_pieces(
    scheduler: Scheduler, path: LivePath, make: Callable[[], Awaitable[StepRequest | None]]
) -> AsyncGenerator[StepPiece, None]:
    """Makes a request (None: the path is finished), and gives what it generates.

    The request is withdrawn where the generator ends before it.
    """
    request = await make()
    if request is None:
        yield StepPiece("", (), (), (), path.finish_reason)
        return
    news = asyncio.Event()
    cutter = _Cutter(path, request)
    request.on_token = news.set
    scheduler.enqueue(request)
    future = request.future
    future.add_done_callback(lambda _: news.set())
    try:
        while not future.done():
            await news.wait()
            news.clear()
            if not future.done() and (piece := cutter.next_piece()):
                yield piece
        yield cutter.last_piece(future.result())
    finally:
        if future.cancel():
            scheduler.withdraw(request)
        elif not future.cancelled():
            future.exception()  # which nobody else asks for


class _Cutter:
    """Cuts what a step adds to its path into pieces."""

    def __init__(self, path: LivePath, request: StepRequest) -> None:
        tokenizer = path.runtime.tokenizer
        self._path, self._request = path, request
        self._out = self._read = request.begin  # positions up to which tokens are out, and were looked at
        self._text = text_stream(tokenizer, path.tokens, special=False)
        self._stops: Sequence[str] = request.params.stop
        self._whole = text_stream(tokenizer, path.tokens, special=True)
        self._held: list[str] = []  # texts of the tokens that are not out, special ones included

    def next_piece(self) -> StepPiece | None:
        """What no stop string can begin in."""
        tokens = self._path.tokens
        if not self._stops:
            return self._piece(len(tokens)) if len(tokens) > self._out else None
        self._held += [self._whole.add([token]) for token in tokens[self._read :]]
        self._read = len(tokens)
        text = "".join(self._held)
        free = len(text) - max(_overlap(text, stop) for stop in self._stops)
        count = 0
        while count < len(self._held) and len(self._held[count]) <= free:
            free -= len(self._held[count])
            count += 1
        del self._held[:count]
        return self._piece(self._out + count) if count else None

    def last_piece(self, step: Step) -> StepPiece:
        """What is not out of the step. The branch may have changed since it was done."""
        out = self._out - self._request.begin
        return StepPiece(
            text=self._text.add(step.tokens[out:]),
            tokens=step.tokens[out:],
            logprobs=step.logprobs[out:],
            entropies=step.entropies[out:],
            reason=step.reason,
            top_logprobs=step.top_logprobs[out:],
            self_certainties=step.self_certainties[out:],
        )

    def _piece(self, end: int) -> StepPiece:
        """What the path has up to a position."""
        path, begin, first = self._path, self._out, self._request.begin
        self._out = end
        numbers = slice(begin - path.prompt_length, end - path.prompt_length)
        return StepPiece(
            text=self._text.add(path.tokens[begin:end]),
            tokens=tuple(path.tokens[begin:end]),
            logprobs=tuple(path.logprobs[numbers]),
            entropies=tuple(path.entropies[numbers]),
            reason=None,
            top_logprobs=tuple(self._request.tops[begin - first : end - first]),
            self_certainties=tuple(self._request.certainties[begin - first : end - first]),
        )


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of the text that a stop string begins with, short of all of it."""
    return next(
        (length for length in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:length])), 0
    )
