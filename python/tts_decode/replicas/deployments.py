"""What Ray Serve runs: the front, which receives all HTTP requests, and one deployment per replica.

Each deployment has a single replica in Ray Serve's sense, so its handle addresses that one and Ray Serve's
router has nothing to choose.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from ..serve.config import Limits
from .front import Front


class RemoteReplica:
    """A replica behind a Ray Serve handle."""

    def __init__(self, handle: Any) -> None:
        self._calls, self._streams = handle, handle.options(stream=True)

    async def presence(self) -> AsyncGenerator[Any, None]:
        response = self._streams.presence.remote()
        try:
            async for each in response:
                yield each
        finally:
            response.cancel()

    async def answer(self, scope: Scope, body: bytes) -> AsyncGenerator[Message, None]:
        response = self._streams.answer.remote(scope, body)
        try:
            async for message in response:
                yield message
        finally:
            response.cancel()

    async def close(self) -> None:
        await self._calls.close.remote()


class FrontDeployment:
    """The front as a deployment. Ray Serve constructs it and calls its methods on one event loop.

    Args: as for `Front`; replicas: Ray Serve handles.
    """

    def __init__(self, replicas: Sequence[Any], keys: Sequence[str], limits: Limits) -> None:
        self._front = Front([RemoteReplica(handle) for handle in replicas], keys, limits)
        self._front.open()

    async def complete(self) -> str | None:
        """Returns None when all replicas serve, or why one of them must not."""
        return await self._front.complete()

    async def __call__(self, request: Request) -> Response:
        return _Answer(self._front)

    async def close(self, grace: float) -> None:
        await self._front.close(grace)


class _Answer(Response):
    """A response that lets the front answer: Ray Serve sends a response by calling it."""

    def __init__(self, front: Front) -> None:
        super().__init__()
        self._front = front

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._front(scope, receive, send)
