"""The decoder's own thread: its event loop, and its exchange with the loop that speaks HTTP."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

import torch

from .errors import unavailable

T = TypeVar("T")


class EngineThread:
    """Runs an event loop in a thread, for everything that uses the decoder.

    HTTP and the model then do not wait for each other: during a forward the other thread runs Python.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._closed = False  # nothing more is accepted
        self._lock = threading.Lock()  # guards closing: whatever was accepted before is cancelled by it
        self._threads = torch.get_num_threads()
        self._thread = threading.Thread(target=self._run, name="tts-decoder", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Starts a coroutine there; cancelling the future cancels it.

        Raises APIError, 503, once the thread is ending; the coroutine is then closed.
        """
        with self._lock:
            if not self._closed:
                return asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        coroutine.close()
        raise unavailable("the server is shutting down")

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Returns the result of a function called there."""

        async def run() -> T:
            return function(*arguments)

        return await asyncio.wrap_future(self.submit(run()))

    def close(self) -> None:
        """Cancels what is still running, waits for its end, and ends the thread."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        torch.set_num_threads(self._threads)  # OpenMP stores this per thread
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            with self._lock:
                self._closed = True  # also if an interrupt ended the loop
            tasks = asyncio.all_tasks(self._loop)
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(_ended(tasks))
            self._loop.close()


async def _ended(tasks: set[asyncio.Task[Any]]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)


class Inbox(Generic[T]):
    """Items that come from another thread, for one reader."""

    def __init__(self) -> None:
        self._items: list[T] = []
        self._news = asyncio.Event()

    def add(self, item: T) -> None:
        self._items.append(item)
        self._news.set()

    async def take(self) -> list[T]:
        """Returns everything that came since the last call, at least one item."""
        await self._news.wait()
        self._news.clear()
        items, self._items = self._items, []
        return items


class Ferry:
    """Carries items from the engine's thread to inboxes of another loop.

    All items of one turn of the engine's loop cross in one call: one wake-up of the other thread per forward,
    however many streams there are.
    """

    def __init__(self, to: asyncio.AbstractEventLoop) -> None:
        self._to = to
        self._load: list[tuple[Inbox[Any], Any]] = []

    def put(self, inbox: Inbox[T], item: T) -> None:
        """Adds an item; for the engine's thread."""
        if not self._load:
            asyncio.get_running_loop().call_soon(self._cross)
        self._load.append((inbox, item))

    def _cross(self) -> None:
        load, self._load = self._load, []
        if not self._to.is_closed():
            self._to.call_soon_threadsafe(_deliver, load)


def _deliver(load: list[tuple[Inbox[Any], Any]]) -> None:
    for inbox, item in load:
        inbox.add(item)
