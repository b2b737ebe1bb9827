"""The engine's work for one request, watched until it has really ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from .engine import EngineThread
from .errors import APIError


class Working:
    """Runs a coroutine on the engine's thread. For the loop that speaks HTTP.

    A future between threads counts as done as soon as it is cancelled, while its coroutine is still releasing
    branches. So the coroutine is a separate task, which another one waits for.

    Args:
        ended: called when the coroutine is over, however it ended.

    Attributes:
        error: why it failed; None before its end, or if it did not fail.

    Raises:
        APIError: the engine accepts no more work, 503. The coroutine is closed, and `ended` is not called.
    """

    def __init__(
        self, engine: EngineThread, coroutine: Coroutine[Any, Any, None], ended: Callable[[], None]
    ) -> None:
        self.error: BaseException | None = None
        self._engine = engine
        self._task: asyncio.Task[None] | None = None
        self._over = False
        self._cancelled = False
        self._ended = ended
        try:
            self._future = asyncio.wrap_future(engine.submit(self._run(coroutine)))
        except APIError:
            coroutine.close()
            raise
        self._future.add_done_callback(self._end)

    def cancel(self) -> None:
        """Ends the work soon; does nothing if it is over."""
        if self._over:
            return
        with suppress(APIError):  # the engine was closed, which cancelled everything
            self._engine.submit(self._cancel())

    async def _run(self, coroutine: Coroutine[Any, Any, None]) -> BaseException | None:
        self._task = task = asyncio.ensure_future(coroutine)
        if self._cancelled:
            task.cancel()
        await asyncio.wait((task,))
        return asyncio.CancelledError() if task.cancelled() else task.exception()

    async def _cancel(self) -> None:
        self._cancelled = True
        if self._task is not None:
            self._task.cancel()

    def _end(self, future: asyncio.Future[BaseException | None]) -> None:
        self._over = True
        if future.cancelled():
            self.error = asyncio.CancelledError()
        else:
            self.error = future.exception() or future.result()
        self._ended()
