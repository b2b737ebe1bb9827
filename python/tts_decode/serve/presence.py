"""Detects whether the client of a request is still connected."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from ..errors import TTSError

T = TypeVar("T")


class DisconnectedError(TTSError):
    """The client is gone: there is nobody to answer."""


async def disconnected(receive: Receive) -> None:
    """Returns when the client has left. For use after the request's body, one call at a time."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def while_there(receive: Receive, coroutine: Coroutine[Any, Any, T]) -> T:
    """Returns the coroutine's result; if the client leaves, cancels it and raises DisconnectedError."""
    work = asyncio.ensure_future(coroutine)
    gone = asyncio.ensure_future(disconnected(receive))
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise DisconnectedError
        return work.result()
    finally:
        gone.cancel()
        work.cancel()
