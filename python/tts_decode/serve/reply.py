"""Starts the work of a request on the engine, and sends its results: whole, or as a stream of events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .admission import Admission, Ticket, released_on_error
from .answers import DONE, Form, event
from .config import Limits
from .engine import EngineThread, Ferry, Inbox
from .errors import APIError, as_api_error, error_response, unavailable
from .generation import Emit
from .grammars import Grammars
from .job import Piece, Usage
from .metrics import Metrics
from .presence import disconnected
from .prompts import Prompts
from .sending import NotTakenError, Sender
from .working import Working

_JSON = (b"content-type", b"application/json")
_EVENTS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
_LONG = 2048  # tokens and alternatives; answers from here on are written outside the event loop


@dataclass(frozen=True)
class Work:
    """The work of a request.

    run: the coroutine for the engine; it passes pieces to its argument. usage: counted by it.

    ticket: held until the coroutine has ended.
    """

    run: Callable[[Emit], Coroutine[Any, Any, None]]
    form: Form
    usage: Usage
    ticket: Ticket
    stream: bool
    include_usage: bool


@dataclass(frozen=True)
class Desk:
    """What replies share. ferry: from the engine to this loop. grammars: for the engine's loop."""

    engine: EngineThread
    ferry: Ferry
    admission: Admission
    metrics: Metrics
    limits: Limits
    prompts: Prompts
    grammars: Grammars


class _Gone:
    """Put into an inbox when the client leaves."""


class _Late:
    """Put into an inbox when the time is over."""


_Item = Piece | _Gone | _Late | None  # None: the work ended


class Reply(Response):
    """The response to one request. If it ends early, its work is cancelled and frees its pages.

    If the engine accepts no more work, sending it raises APIError, 503, before anything is sent.
    """

    def __init__(self, desk: Desk, work: Work) -> None:
        super().__init__()
        self._desk, self._work = desk, work
        self._began = time.monotonic()
        self._inbox: Inbox[_Item] = Inbox()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        desk, loop = self._desk, asyncio.get_running_loop()
        with released_on_error(self._work.ticket):
            working = self._start()
        watch = asyncio.ensure_future(disconnected(receive))
        watch.add_done_callback(lambda _: self._inbox.add(_Gone()))
        timer = loop.call_later(desk.limits.request_seconds, self._inbox.add, _Late())
        sender = Sender(send, desk.limits.idle_seconds)
        try:
            await (self._stream if self._work.stream else self._whole)(working, sender)
        except APIError as error:
            await error_response(error)(scope, receive, sender)
        except NotTakenError:
            desk.metrics.cancelled()
        finally:
            sender.close()
            timer.cancel()
            watch.cancel()
            working.cancel()
            desk.metrics.replied(time.monotonic() - self._began)

    def _start(self) -> Working:
        """Starts the work. Sequences are freed, and tokens counted, when the work has really ended."""
        desk, work, inbox = self._desk, self._work, self._inbox

        def emit(piece: Piece) -> None:
            desk.ferry.put(inbox, piece)

        def ended() -> None:
            work.ticket.release()
            desk.metrics.used(work.usage)
            inbox.add(None)

        return Working(desk.engine, work.run(emit), ended)

    async def _whole(self, working: Working, send: Sender) -> None:
        pieces: list[Piece] = []
        ended = False
        while not ended:
            news, ended = await self._news(working)
            if news is None:
                return
            pieces += news
        form, usage = self._work.form, self._work.usage
        body = await _apart(pieces, partial(form.whole, pieces, usage))
        headers = [_JSON, (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _stream(self, working: Working, send: Sender) -> None:
        form, usage = self._work.form, self._work.usage
        started = ended = False
        while not ended:
            try:
                news, ended = await self._news(working)
                data = await _apart(news or [], partial(form.chunks, news or []))
                if ended and self._work.include_usage:
                    data += form.usage_chunk(usage)
            except APIError as error:
                if not started:
                    raise
                news, ended, data = [], True, event(error.body)
            if news is None:
                return
            if not started:
                await send({"type": "http.response.start", "status": 200, "headers": _EVENTS})
                started = True
                self._desk.metrics.began(time.monotonic() - self._began)
            if ended:
                data += DONE
            await send({"type": "http.response.body", "body": data, "more_body": not ended})

    async def _news(self, working: Working) -> tuple[list[Piece] | None, bool]:
        """Returns what came, and whether it is the end; None: the client left.

        Raises APIError if the work failed, the time is over, or the server is shutting down.
        """
        pieces: list[Piece] = []
        try:
            items = await self._inbox.take()
        except asyncio.CancelledError:  # only a server that is shutting down cancels its requests
            raise unavailable("the server is shutting down") from None
        for item in items:
            if isinstance(item, Piece):
                pieces.append(item)
            elif isinstance(item, _Gone):
                self._desk.metrics.cancelled()
                return None, True
            elif isinstance(item, _Late):
                message = f"the answer took longer than {self._desk.limits.request_seconds:g} s"
                raise APIError(504, message, None, "timeout")
            else:
                if (error := working.error) is not None:
                    raise as_api_error(error)
                return pieces, True
        return pieces, False


async def _apart(pieces: Sequence[Piece], write: Callable[[], bytes]) -> bytes:
    """Returns what `write` makes of the pieces; runs it outside the event loop if that takes long."""
    listed = [tokens for piece in pieces for tokens in (piece.echoed, piece.tokens) if tokens]
    size = sum(len(tokens) * (1 + len(tokens[-1].top)) for tokens in listed)
    size += sum(len(piece.prompt_ids) for piece in pieces)
    return write() if size < _LONG else await asyncio.to_thread(write)
