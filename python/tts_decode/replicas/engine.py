"""The process of a replica: a decoder and its server's application, called without HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, MutableMapping
from typing import Any

import torch

from ..cluster.identity import Identity, identity_of
from ..decoding.decoder import TreeDecoder
from ..serve.app import create_app
from ..serve.config import ServerConfig
from ..serve.run import log_to_stderr


class Engine:
    """A replica as a deployment. Ray Serve constructs it and calls its methods on one event loop.

    Args:
        opens: makes the decoder and its server's configuration.
        threads: CPU threads of the decoder.
    """

    def __init__(self, opens: Callable[[], tuple[TreeDecoder, ServerConfig]], threads: int) -> None:
        torch.set_num_threads(threads)
        decoder, config = opens()
        log_to_stderr(config.keys)
        self._identity = identity_of(decoder)
        self._app = create_app(decoder, config)
        self._server = self._app.state.server
        self._server.open()
        self._requests: set[asyncio.Task[None]] = set()

    def check_health(self) -> None:
        """Raises if the decoder has stopped; Ray Serve then restarts the replica."""
        if not self._server.desk.engine.alive:
            raise RuntimeError("the decoder's thread has ended")

    async def presence(self) -> AsyncGenerator[Identity, None]:
        """Yields what it serves, and ends only when the process does."""
        yield self._identity
        await asyncio.Event().wait()

    async def answer(self, scope: dict[str, Any], body: bytes) -> AsyncGenerator[dict[str, Any], None]:
        """Yields what the application sends. Closing the generator early means that the client left."""
        messages: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        left = asyncio.Event()
        parts = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if parts:
                return parts.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: MutableMapping[str, Any]) -> None:
            messages.put_nowait(dict(message))

        request = asyncio.ensure_future(self._app(scope, receive, send))
        self._requests.add(request)
        request.add_done_callback(self._requests.discard)
        request.add_done_callback(lambda _: messages.put_nowait(None))
        try:
            while (message := await messages.get()) is not None:
                yield message
        finally:
            left.set()

    async def close(self) -> None:
        """Cancels all requests; the application answers them with an error."""
        await self._server.close()
