"""Bodies of requests, read within their limits."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fastapi import Request
from starlette.requests import ClientDisconnect

from ..errors import TTSError
from ..records.strict_json import loads
from .config import Limits
from .errors import APIError
from .protocol import B, read_body

_SLOWEST = 20  # times `Limits.idle_seconds` that a body may take in all: 4 MiB in 600 s
_LONG = 1 << 15  # bytes; bodies from here on are read beside the event loop


class DisconnectedError(TTSError):
    """The client is gone: there is nobody to answer."""


async def body_of(request: Request, kind: type[B], limits: Limits) -> B:
    """What a request asks for. Raises APIError for a body that is too large, too slow or none."""
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json":
        raise APIError(415, "Content-Type: expected application/json", None, "unsupported_media_type")
    data = await _received(request, limits)
    if len(data) < _LONG:
        return _parsed(data, kind)
    return await asyncio.to_thread(_parsed, data, kind)


async def _received(request: Request, limits: Limits) -> bytes:
    too_large = APIError(413, f"the body: expected at most {limits.body_bytes} bytes", None, "body_too_large")
    length = request.headers.get("content-length", "")
    if length.isdigit() and len(length) < 20 and int(length) > limits.body_bytes:
        raise too_large
    data = bytearray()
    parts = request.stream()
    end = time.monotonic() + _SLOWEST * limits.idle_seconds
    try:
        while (part := await asyncio.wait_for(anext(parts, None), limits.idle_seconds)) is not None:
            data += part
            if len(data) > limits.body_bytes:
                raise too_large
            if time.monotonic() > end:
                raise asyncio.TimeoutError
    except asyncio.TimeoutError:
        idle = limits.idle_seconds
        message = f"the body: expected a part every {idle:g} s, and the end within {_SLOWEST * idle:g} s"
        raise APIError(408, message, None, "timeout") from None
    except ClientDisconnect:
        raise DisconnectedError from None
    return bytes(data)


def _parsed(data: bytes, kind: type[B]) -> B:
    try:
        value: Any = loads(data)
    except ValueError as error:
        raise APIError(400, f"the body {error}", None, "invalid_json") from None
    return read_body(kind, value)
