"""Bodies of requests, read within their limits: of each, and of all together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from fastapi import Request
from starlette.requests import ClientDisconnect

from ..errors import TTSError
from ..records.strict_json import loads
from .config import Limits
from .errors import APIError, unavailable
from .protocol import B, read_body

_SLOWEST = 20  # times `Limits.idle_seconds` that a body may take in all: 4 MiB in 600 s
_LONG = 1 << 15  # bytes; bodies from here on are read beside the event loop


class DisconnectedError(TTSError):
    """The client is gone: there is nobody to answer."""


class Bodies:
    """Reads bodies for the loop that speaks HTTP.

    Attributes:
        held: bytes that came, of requests that are not taken or refused yet.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._room = max(limits.bodies_bytes, limits.body_bytes)  # one alone has room
        self.held = 0

    @asynccontextmanager
    async def read(self, request: Request, kind: type[B]) -> AsyncIterator[B]:
        """What a request asks for; its bytes are held until the end of the block.

        Raises APIError for a body that is too large, too slow or none, and for one without room, 503.
        """
        media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media != "application/json":
            raise APIError(415, "Content-Type: expected application/json", None, "unsupported_media_type")
        with self._holding() as take:
            yield await _read(await _received(request, self._limits, take), kind)

    @contextmanager
    def _holding(self) -> Iterator[Callable[[int], None]]:
        """Gives a function that takes room for so many bytes more, until the end of the block."""
        held = 0

        def take(size: int) -> None:
            nonlocal held
            if self.held + size > self._room:
                raise unavailable("too many bytes of requests are on their way; try again")
            held += size
            self.held += size

        try:
            yield take
        finally:
            self.held -= held


async def _received(request: Request, limits: Limits, take: Callable[[int], None]) -> bytes:
    """take: is told of each part."""
    too_large = APIError(413, f"the body: expected at most {limits.body_bytes} bytes", None, "body_too_large")
    length = request.headers.get("content-length", "")
    if length.isdigit() and len(length) < 20 and int(length) > limits.body_bytes:
        raise too_large
    data = bytearray()
    parts = request.stream()
    end = time.monotonic() + _SLOWEST * limits.idle_seconds
    try:
        while (part := await asyncio.wait_for(anext(parts, None), limits.idle_seconds)) is not None:
            if len(data) + len(part) > limits.body_bytes:
                raise too_large
            take(len(part))
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


async def _read(data: bytes, kind: type[B]) -> B:
    return _parsed(data, kind) if len(data) < _LONG else await asyncio.to_thread(_parsed, data, kind)


def _parsed(data: bytes, kind: type[B]) -> B:
    try:
        value: Any = loads(data)
    except ValueError as error:
        raise APIError(400, f"the body {error}", None, "invalid_json") from None
    return read_body(kind, value)
