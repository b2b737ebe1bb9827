"""Yields a step in pieces, as its tokens come."""

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
    """Makes a request (None: the path is finished) and yields what it generates.

    The request is withdrawn if the generator ends first.
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
            future.exception()  # nobody else retrieves it


class _Cutter:
    """Cuts what a step adds to its path into pieces."""

    def __init__(self, path: LivePath, request: StepRequest) -> None:
        tokenizer = path.runtime.tokenizer
        self._path, self._request = path, request
        self._out = self._read = request.begin  # ends of the tokens already yielded, and already examined
        self._text = text_stream(tokenizer, path.tokens, special=False)
        self._stops: Sequence[str] = request.params.stop
        self._whole = text_stream(tokenizer, path.tokens, special=True)
        self._held: list[str] = []  # texts of the tokens not yielded yet, special ones included

    def next_piece(self) -> StepPiece | None:
        """Returns the text in which no stop string can begin."""
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
        """Returns the rest of the step. The branch may have changed since the step was done."""
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
        """Returns what the path holds up to a position."""
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
    """Returns the length of the longest suffix of the text that is a proper prefix of the stop string."""
    return next(
        (length for length in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:length])), 0
    )
