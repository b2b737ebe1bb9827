"""Reads request bodies within their limits, each and in total."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Request
from starlette.requests import ClientDisconnect

from ..records.strict_json import loads
from .config import Limits
from .errors import APIError, given, unavailable
from .presence import DisconnectedError, while_there
from .protocol import B, read_body

_SLOWEST = 20  # multiple of `Limits.idle_seconds` that a body may take in total: 4 MiB in 600 s
_LONG = 1 << 15  # bytes; bodies from this size on are parsed outside the event loop


class _Body:
    """Bytes of one request.

    Attributes:
        client: whom they count for. size: bytes received. given_up: whether they made room for others.
        next: the part that was last waited for.
    """

    def __init__(self, client: str) -> None:
        self.client, self.size, self.given_up = client, 0, False
        self.next: asyncio.Future[bytes | None] | None = None


class Bodies:
    """Reads bodies for the loop that speaks HTTP.

    If there is no room, the client that holds the most bytes gives up a body that is still arriving: no
    client takes the room of those that hold less.

    Attributes:
        held: bytes received for requests that are not accepted or refused yet.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._room = max(limits.bodies_bytes, limits.body_bytes)  # room for at least one
        self._clients: Counter[str] = Counter()  # bytes of each
        self._arriving: set[_Body] = set()
        self.held = 0

    @asynccontextmanager
    async def read(self, request: Request, kind: type[B], client: str) -> AsyncIterator[B]:
        """Yields the parsed request of a client; its bytes are held until the end of the block.

        Raises the errors of `received`, and APIError for an invalid body.
        """
        async with self.received(request, client) as data:
            yield await _read(request, data, kind)

    @asynccontextmanager
    async def received(self, request: Request, client: str) -> AsyncIterator[bytes]:
        """Yields the bytes of a request of a client, which are held until the end of the block.

        Raises APIError for a body that is not declared as JSON, too large or too slow, and for one without
        room, 503; DisconnectedError if the client leaves before it is read.
        """
        media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media != "application/json":
            message = f"Content-Type: got {given(media)}, expected application/json"
            raise APIError(415, message, None, "unsupported_media_type")
        coding = request.headers.get("content-encoding", "identity").strip().lower()
        if coding not in ("identity", ""):
            message = f"Content-Encoding: got {given(coding)}, expected a body as it is"
            headers = {"Accept-Encoding": "identity"}
            raise APIError(415, message, None, "unsupported_content_encoding", headers)
        body = _Body(client)
        try:
            yield await self._arrived(request, body)
        finally:
            self._give_back(body)

    async def _arrived(self, request: Request, body: _Body) -> bytes:
        limits = self._limits
        too_large = APIError(
            413, f"the body: expected at most {limits.body_bytes} bytes", None, "body_too_large"
        )
        length = request.headers.get("content-length", "")
        if length.isdigit() and len(length) < 20 and int(length) > limits.body_bytes:
            raise too_large
        data = bytearray()
        parts = request.stream()
        end = time.monotonic() + _SLOWEST * limits.idle_seconds
        try:
            while (part := await self._next(parts, body)) is not None:
                if len(data) + len(part) > limits.body_bytes:
                    raise too_large
                self._take(body, len(part))
                data += part
                if time.monotonic() > end:
                    raise asyncio.TimeoutError
        except asyncio.TimeoutError:
            idle = limits.idle_seconds
            message = f"the body: expected a part every {idle:g} s, and the end within {_SLOWEST * idle:g} s"
            raise APIError(408, message, None, "timeout") from None
        except ClientDisconnect:
            raise DisconnectedError from None
        return bytes(data)

    async def _next(self, parts: AsyncIterator[bytes], body: _Body) -> bytes | None:
        """Returns the next part of a body; None at its end. Raises APIError, 503, if it was given up."""
        body.next = asyncio.ensure_future(_part(parts))
        self._arriving.add(body)
        try:
            part = await asyncio.wait_for(body.next, self._limits.idle_seconds)
        except asyncio.CancelledError:
            if not body.given_up:
                raise
        finally:
            self._arriving.discard(body)
        if body.given_up:  # even if the part came at the same time
            raise unavailable("too many bytes of requests are on their way, most of them yours; try again")
        return part

    def _take(self, body: _Body, size: int) -> None:
        """Takes room for `size` more bytes. Raises APIError, 503."""
        clients = self._clients
        while self.held + size > self._room:
            own = clients[body.client] + size
            others = [each for each in self._arriving if each.size and clients[each.client] > own]
            if not others:
                raise unavailable("too many bytes of requests are on their way; try again")
            last = max(others, key=lambda each: (clients[each.client], each.size))
            self._give_back(last)
            last.given_up = True
            if last.next is not None:
                last.next.cancel()
        body.size += size
        clients[body.client] += size
        self.held += size

    def _give_back(self, body: _Body) -> None:
        """Returns all bytes of a body; a second call does nothing."""
        self.held -= body.size
        self._clients[body.client] -= body.size
        if not self._clients[body.client]:
            del self._clients[body.client]  # clients come and go
        body.size = 0


async def _part(parts: AsyncIterator[bytes]) -> bytes | None:
    return await anext(parts, None)


async def _read(request: Request, data: bytes, kind: type[B]) -> B:
    if len(data) < _LONG:
        return _parsed(data, kind)
    return await while_there(request.receive, asyncio.to_thread(_parsed, data, kind))


def _parsed(data: bytes, kind: type[B]) -> B:
    try:
        value: Any = loads(data)
    except ValueError as error:
        raise APIError(400, f"the body {error}", None, "invalid_json") from None
    return read_body(kind, value)
