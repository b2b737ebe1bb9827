"""Sends the parts of a response to a client that may not take them."""

from __future__ import annotations

import asyncio

from starlette.types import Message, Send

from ..errors import TTSError


class NotTakenError(TTSError):
    """The client did not take a part in time."""


class Sender:
    """Sends for one response. For the task that makes it.

    Args:
        seconds: time limit for a client to take a part.
    """

    def __init__(self, send: Send, seconds: float) -> None:
        self._send, self._seconds = send, seconds
        self._since: float | None = None  # start time of the part being sent
        self._task = asyncio.current_task()
        self._late = False
        self._loop = asyncio.get_running_loop()
        self._watch = self._loop.call_later(seconds / 8, self._look)

    async def __call__(self, message: Message) -> None:
        """Sends a part. Raises NotTakenError."""
        self._since = self._loop.time()
        try:
            await self._send(message)
        except asyncio.CancelledError:
            if not self._late:
                raise
            raise NotTakenError("the client did not take its answer") from None
        finally:
            self._since = None

    def close(self) -> None:
        self._watch.cancel()

    def _look(self) -> None:
        """Checks with one timer for all parts: most are taken at once."""
        if self._since is not None and self._loop.time() - self._since >= self._seconds:
            self._late = True
            if self._task is not None:
                self._task.cancel()
        else:
            self._watch = self._loop.call_later(self._seconds / 8, self._look)
