"""Starts the work of a request on the engine, and sends what comes of it: whole, or as a stream of events."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import traceback
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from tts_kernels import OutOfPagesError

from ..errors import ConstraintError, PromptTooLongError
from .admission import Admission
from .answers import DONE, Form, event, merged
from .config import Limits
from .engine import EngineThread, Ferry, Inbox
from .errors import APIError, invalid, unavailable
from .generation import Emit
from .job import Piece, Usage
from .metrics import Metrics

_log = logging.getLogger(__name__)
_EVENTS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


@dataclass(frozen=True)
class Work:
    """run: the coroutine for the engine; it gives pieces to its argument. usage: counted by it."""

    run: Callable[[Emit], Coroutine[Any, Any, None]]
    form: Form
    usage: Usage
    sequences: int
    stream: bool
    include_usage: bool


@dataclass(frozen=True)
class Desk:
    """What replies share. ferry: from the engine to this loop."""

    engine: EngineThread
    ferry: Ferry
    admission: Admission
    metrics: Metrics
    limits: Limits


class _Gone:
    """Comes into an inbox when the client went away, or did not take its answer."""


class _Late:
    """Comes into an inbox when the time is over."""


_Item = Piece | _Gone | _Late | None  # None: the work ended


class Reply(Response):
    """The response to one request. Whatever ends it early, the work is cancelled and gives its pages back."""

    def __init__(self, desk: Desk, work: Work) -> None:
        super().__init__()
        self._desk, self._work = desk, work
        self._began = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        desk = self._desk
        inbox: Inbox[_Item] = Inbox()
        try:
            with desk.admission.admit(self._work.sequences):
                await self._serve(inbox, receive, send)
        except APIError as error:
            await error_response(error)(scope, receive, send)
        finally:
            desk.metrics.ended(time.monotonic() - self._began, self._work.usage)

    async def _serve(self, inbox: Inbox[_Item], receive: Receive, send: Send) -> None:
        desk, work, loop = self._desk, self._work, asyncio.get_running_loop()

        def emit(piece: Piece) -> None:
            desk.ferry.put(inbox, piece)

        result = asyncio.wrap_future(desk.engine.submit(work.run(emit)))
        result.add_done_callback(lambda _: inbox.add(None))
        watch = asyncio.ensure_future(_disconnected(receive))
        watch.add_done_callback(lambda _: inbox.add(_Gone()))
        timer = loop.call_later(desk.limits.request_seconds, inbox.add, _Late())
        try:
            await (self._stream if work.stream else self._whole)(inbox, result, send)
        finally:
            timer.cancel()
            watch.cancel()
            result.cancel()

    async def _whole(self, inbox: Inbox[_Item], result: asyncio.Future[None], send: Send) -> None:
        pieces: list[Piece] = []
        ended = False
        while not ended:
            news, ended = await self._news(inbox, result)
            if news is None:
                return
            pieces += news
        answer = self._work.form.whole(pieces, self._work.usage)
        body = json.dumps(answer, separators=(",", ":")).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._send(send, {"type": "http.response.body", "body": body})

    async def _stream(self, inbox: Inbox[_Item], result: asyncio.Future[None], send: Send) -> None:
        work = self._work
        started = False
        while True:
            try:
                news, ended = await self._news(inbox, result)
            except APIError as error:
                if not started:
                    raise
                news, ended, last = [], True, event(error.body)
            else:
                last = event(work.form.usage_chunk(work.usage)) if ended and work.include_usage else b""
            if news is None:
                return
            if not started:
                await send({"type": "http.response.start", "status": 200, "headers": _EVENTS})
                started = True
                self._desk.metrics.began(time.monotonic() - self._began)
            data = b"".join(event(work.form.chunk(piece)) for piece in merged(news))
            if ended:
                data += last + DONE
            if not await self._send(
                send, {"type": "http.response.body", "body": data, "more_body": not ended}
            ):
                return
            if ended:
                return

    async def _news(
        self, inbox: Inbox[_Item], result: asyncio.Future[None]
    ) -> tuple[list[Piece] | None, bool]:
        """What came, and whether it is the end; None: the client went away.

        Raises APIError where the work failed, or the time is over.
        """
        pieces: list[Piece] = []
        for item in await inbox.take():
            if isinstance(item, Piece):
                pieces.append(item)
            elif isinstance(item, _Gone):
                self._desk.metrics.cancelled()
                return None, True
            elif isinstance(item, _Late):
                message = f"the answer took longer than {self._desk.limits.request_seconds:g} s"
                raise APIError(504, message, None, "timeout")
            else:
                if result.cancelled():
                    raise unavailable("the server is shutting down")
                if (error := result.exception()) is not None:
                    raise as_api_error(error)
                return pieces, True
        return pieces, False

    async def _send(self, send: Send, message: Message) -> bool:
        """False where the client does not take it in time."""
        task = asyncio.current_task()
        assert task is not None  # a coroutine of the loop
        late = False

        def give_up() -> None:
            nonlocal late
            late = True
            task.cancel()

        timer = asyncio.get_running_loop().call_later(self._desk.limits.idle_seconds, give_up)
        try:
            await send(message)
        except asyncio.CancelledError:
            if not late:
                raise
            self._desk.metrics.cancelled()
            return False
        finally:
            timer.cancel()
        return True


def error_response(error: APIError) -> JSONResponse:
    return JSONResponse(error.body, error.status, error.headers)


def as_api_error(error: BaseException) -> APIError:
    """What a client is told of a failure; what it is not told goes to the log."""
    if isinstance(error, APIError):
        return error
    if isinstance(error, OutOfPagesError):
        return unavailable("no memory is left for the KV of this request; try again, or ask for less")
    if isinstance(error, PromptTooLongError):
        return APIError(
            400, "the prompt is too long for the model or its memory", None, "context_length_exceeded"
        )
    if isinstance(error, ConstraintError):
        return invalid("response_format", str(error))
    _log.error("a request failed:\n%s", "".join(traceback.format_exception(error)))
    return APIError(500, "the server failed; its log says more", None, "internal_error")


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
