"""Passes an answer on to the client, and ends it if the replica does not."""

from __future__ import annotations

from starlette.types import Message, Receive, Scope, Send

from ..serve.answers import DONE, event
from ..serve.errors import APIError, error_response

_EVENTS = b"text/event-stream"


class Relay:
    """Forwards an answer's messages. The head waits for the body, so it is never sent alone."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._head: Message | None = None
        self._started = False

    async def take(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._head = message
            return
        if not self._started and self._head is not None:
            self._started = True
            await self._send(self._head)
        await self._send(message)

    async def fail(self, error: APIError, scope: Scope, receive: Receive) -> None:
        """Sends the error as the answer, or as the last event of a stream that has begun."""
        if not self._started:
            await error_response(error)(scope, receive, self._send)
        elif self._streams:
            data = event(error.body) + DONE
            await self._send({"type": "http.response.body", "body": data, "more_body": False})

    @property
    def _streams(self) -> bool:
        headers = dict(self._head["headers"]) if self._head is not None else {}
        return bool(headers.get(b"content-type", b"").startswith(_EVENTS))
