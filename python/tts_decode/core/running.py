"""Runs coroutines concurrently; handles failures and cancellation."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import Any, Literal, TypeVar, overload

T = TypeVar("T")


class Place:
    """The place of a task among those that `gather` started."""

    def __init__(self, path: tuple[int, ...] = ()) -> None:
        self._path = path
        self._events = 0

    def next_event(self) -> tuple[int, ...]:
        self._events += 1
        return (*self._path, self._events)


_place: ContextVar[Place] = ContextVar("place")


def next_event() -> tuple[int, ...]:
    """The next event of the running task.

    The events of all tasks, sorted, are in the order in which they would come if each task of a `gather`
    ended before the next one began: an order that does not depend on how long anything takes.
    """
    place = _place.get(None)
    if place is None:
        place = Place()
        _place.set(place)
    return place.next_event()


@contextmanager
def own_place() -> Iterator[None]:
    """Counts the events inside from the start; to the events outside it is as if there were none."""
    before = _place.set(Place())
    try:
        yield
    finally:
        _place.reset(before)


class Runner:
    """Runs searches in their own event loop; every decoder offers this."""

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs one coroutine to its end in its own event loop.

        If a loop is already running, as in a notebook, await the coroutine instead.
        """
        if not isinstance(coroutine, Coroutine):
            called = "; call it: run(f())" if callable(coroutine) else ""
            raise TypeError(f"coroutine: got {type(coroutine).__name__}, expected a coroutine{called}")
        self._refuse_running_loop("run", [coroutine])
        return asyncio.run(coroutine)

    @overload
    def run_all(
        self, coroutines: Iterable[Coroutine[Any, Any, T]], return_exceptions: Literal[False] = False
    ) -> list[T]: ...

    @overload
    def run_all(
        self, coroutines: Iterable[Coroutine[Any, Any, T]], return_exceptions: bool
    ) -> list[T | BaseException]: ...

    def run_all(
        self, coroutines: Iterable[Coroutine[Any, Any, T]], return_exceptions: bool = False
    ) -> list[T] | list[T | BaseException]:
        """Runs several problems in one batch; results in order.

        The first failure cancels the others; with return_exceptions it takes the place of its result, and the
        others continue.
        """
        coroutines = list(coroutines)
        self._refuse_running_loop("run_all", coroutines)

        async def together() -> list[T | BaseException]:
            if return_exceptions:
                return await asyncio.gather(*coroutines, return_exceptions=True)
            return await gather(coroutines)

        return asyncio.run(together())

    def _refuse_running_loop(self, name: str, coroutines: Iterable[Coroutine[Any, Any, Any]]) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return
        for coroutine in coroutines:
            coroutine.close()
        raise RuntimeError(
            f"{type(self).__name__}.{name} was called where an event loop runs already: await the coroutine "
            "instead"
        )


@overload
async def gather(*awaitables: Awaitable[T]) -> list[T]: ...


@overload
async def gather(awaitables: Iterable[Awaitable[T]], /) -> list[T]: ...


async def gather(*awaitables: Awaitable[Any] | Iterable[Awaitable[Any]]) -> list[Any]:
    """Waits for all and returns their results in order; takes awaitables or one iterable of them.

    Unlike `asyncio.gather`, when one fails or the caller is cancelled, the rest are cancelled and have ended
    before the error propagates. What they record in a search follows their order, not the order in time.
    """
    if len(awaitables) == 1 and not isinstance(awaitables[0], Awaitable):
        awaitables = tuple(awaitables[0])
    tasks = _start(awaitables)  # type: ignore[arg-type]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


async def first_of(awaitables: Iterable[Awaitable[T]]) -> T:
    """Returns the result of the first to end; if several end at once, of the first given.

    The others are cancelled and have ended before it returns.
    """
    tasks = _start(awaitables)
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next(task for task in tasks if task in done).result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def in_thread(call: Callable[[], T]) -> T:
    """Runs `call()` in a daemon thread.

    The threads of an executor would delay the end of the event loop and the process.
    """
    outcome: Future[T] = Future()
    outcome.set_running_or_notify_cancel()

    def work() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return await asyncio.wrap_future(outcome)


def _start(awaitables: Iterable[Awaitable[T]]) -> list[asyncio.Future[T]]:
    """Starts a task for each, in its own place below the running task's."""
    event = next_event()
    tasks: list[asyncio.Future[T]] = []
    for index, awaitable in enumerate(awaitables):
        context = copy_context()
        context.run(_place.set, Place((*event, index)))
        tasks.append(context.run(asyncio.ensure_future, awaitable))
    return tasks
