"""HTTP over one connection: uvicorn's protocol with time limits, which notices when clients leave."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from .errors import APIError, error_response, unavailable

CONNECTIONS = 1024  # at a time; requests on further ones are answered 503
_EARLY_BYTES = 1 << 16  # of the next requests, which may arrive while an answer is being sent


def impatient(idle_seconds: float) -> type[asyncio.Protocol]:
    """Returns the protocol for clients with a time limit to send a head, and to read a part of an answer."""

    class ImpatientProtocol(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._early = bytearray()  # arrived while an answer is being sent
            self._begun: float | None = self.loop.time()  # since when a head is awaited; None: none is
            self._unsent, self._moved = (
                0,
                self._begun,
            )  # bytes not read by the client, and since when
            self._watch = self.loop.call_later(0.1 * idle_seconds, self._look)

        @property
        def _answers(self) -> bool:
            """Whether a request is complete and its answer is not."""
            return self.cycle is not None and not (self.cycle.more_body or self.cycle.response_complete)

        def data_received(self, data: bytes) -> None:
            if self._answers:
                # Kept here: h11 would stop reading, and nobody would notice the client leave.
                self._early += data
                if len(self._early) > _EARLY_BYTES:
                    self.transport.abort()
                return
            if self._begun is None and (self.cycle is None or self.cycle.response_complete):
                self._begun = self.loop.time()  # of the next head: more bytes of it do not extend the limit
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._begun = None

        def handle_events(self) -> None:
            crowded = len(self.connections) > CONNECTIONS or len(self.tasks) >= CONNECTIONS
            self.app = _crowded if crowded else self.config.loaded_app
            super().handle_events()
            if self._answers:
                self.flow.resume_reading()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self._early and not self.transport.is_closing():
                early, self._early = bytes(self._early), bytearray()
                self.data_received(early)

        def send_400_response(self, msg: str) -> None:
            body = error_response(APIError(400, "the request is no valid HTTP", None, "invalid_http"))
            lines = [b"HTTP/1.1 400 Bad Request", b"Connection: close"]
            lines += [name + b": " + value for name, value in body.raw_headers]
            cycle = self.cycle
            begun = cycle is not None and cycle.response_started
            if not begun or (cycle.response_complete and not cycle.more_body):  # otherwise it was answered
                self.transport.write(b"\r\n".join([*lines, b"", bytes(body.body)]))
            self.transport.close()

        def connection_lost(self, exc: Exception | None) -> None:
            self._watch.cancel()
            super().connection_lost(exc)

        def _look(self) -> None:
            now = self.loop.time()
            unsent = self.transport.get_write_buffer_size()
            if not unsent or unsent != self._unsent:
                self._unsent, self._moved = unsent, now
            if unsent and now - self._moved >= idle_seconds:
                self.transport.abort()  # close() would wait until the client has read everything
            elif self._begun is not None and now - self._begun >= idle_seconds:
                self.transport.close()
            else:
                self._watch = self.loop.call_later(0.1 * idle_seconds, self._look)

    return ImpatientProtocol


async def _crowded(scope: Scope, receive: Receive, send: Send) -> None:
    """The application for connections beyond the limit."""
    response = error_response(unavailable("too many connections; try again"))
    response.headers["Connection"] = "close"
    await response(scope, receive, send)
