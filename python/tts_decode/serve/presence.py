"""Whether the client of a request is still there."""

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
    """Returns when the client has left. For after the request's body, one call at a time."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def while_there(receive: Receive, coroutine: Coroutine[Any, Any, T]) -> T:
    """What the coroutine returns. It is cancelled, and DisconnectedError raised, where the client leaves."""
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
