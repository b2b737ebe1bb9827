"""Waits, with a time limit, for code that may block its thread, such as a user's scorer."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Generator
from concurrent import futures
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")

_GRACE = 0.5  # seconds that a step gets to clean up after the time limit


async def wait_within(seconds: float, coroutine: Coroutine[Any, Any, T]) -> T:
    """Like `asyncio.wait_for`, but also ends the wait for a coroutine that blocks its thread.

    Each step of the coroutine, from one await to the next, runs on its own thread while the event loop stands
    still, so it may do what it could do in the loop. The same holds for the steps of tasks that it starts. A
    step that takes too long is abandoned: its thread, a daemon, continues alone. A coroutine that is
    cancelled, by the time limit or with its caller, has half a second to clean up. If it continues
    nevertheless, it is abandoned too, and so are the tasks that it started: no further step of what is
    cancelled then begins.

    A loop in debug mode refuses calls from other threads; there the wait is `asyncio.wait_for`.

    Raises:
        asyncio.TimeoutError: the time is over.
    """
    loop = asyncio.get_running_loop()
    if loop.get_debug():
        return await asyncio.wait_for(coroutine, seconds)
    limit = _Limit(loop.time() + seconds)
    task = asyncio.ensure_future(_in_steps(coroutine, limit))
    try:
        await asyncio.wait([task], timeout=seconds)
    finally:
        late = not task.done()
        try:
            if late:
                task.cancel()
                await asyncio.wait([task], timeout=_GRACE)
        finally:
            # Tasks that it started may continue after it has ended.
            limit.over = late or loop.time() >= limit.deadline
            if not task.done():
                task.cancel()
    if late and (task.cancelled() or not task.done()):
        raise asyncio.TimeoutError
    return task.result()


@dataclass
class _Limit:
    """deadline: in the loop's time. over: whether the wait has ended, so nobody waits for what continues."""

    deadline: float
    over: bool = False


async def _in_steps(coroutine: Coroutine[Any, Any, T], limit: _Limit) -> T:
    result: T = await _Stepped(coroutine, limit)
    return result


class _Stepped:
    def __init__(self, coroutine: Coroutine[Any, Any, Any], limit: _Limit) -> None:
        self._coroutine = coroutine
        self._limit = limit
        self._loop = asyncio.get_running_loop()

    def __await__(self) -> Generator[Any, Any, Any]:
        step = partial(self._coroutine.send, None)
        grace = 0.0
        while True:
            ended, value = self._wait_for(step, grace)
            if ended:
                return value
            try:
                step, grace = partial(self._coroutine.send, (yield value)), 0.0
            except BaseException as error:  # thrown in by the task, for example a cancellation
                if self._limit.over:
                    self._close()
                    raise
                step, grace = partial(self._coroutine.throw, error), _GRACE

    def _wait_for(self, step: Callable[[], Any], grace: float) -> tuple[bool, Any]:
        """Returns whether the coroutine ended with this step, and its result or what it awaits now."""
        outcome: futures.Future[tuple[bool, Any]] = futures.Future()
        work = partial(self._take, step, asyncio.current_task(), outcome)
        factory = self._loop.get_task_factory()
        self._loop.set_task_factory(partial(self._make_task, factory or _plain_task))
        try:
            threading.Thread(target=copy_context().run, args=(work,), daemon=True).start()
            futures.wait([outcome], max(self._limit.deadline - self._loop.time(), grace))
        finally:
            self._loop.set_task_factory(factory)
        if not outcome.done():
            raise asyncio.TimeoutError
        return outcome.result()

    def _close(self) -> None:
        """Does not close it, here or on garbage collection: closing may block too."""

        def close() -> None:
            with contextlib.suppress(BaseException):
                self._coroutine.close()

        threading.Thread(target=close, daemon=True).start()

    def _take(self, step: Callable[[], Any], task: Any, outcome: futures.Future[tuple[bool, Any]]) -> None:
        """Runs the step in this thread as if it ran in the loop's."""
        asyncio._set_running_loop(self._loop)
        if asyncio.current_task() is None:  # since Python 3.14 each thread has its own
            asyncio._enter_task(self._loop, task)
        try:
            result = False, step()
        except StopIteration as stop:
            result = True, stop.value
        except BaseException as error:
            outcome.set_exception(error)
            return
        outcome.set_result(result)

    def _make_task(self, make: Callable[..., Any], loop: Any, coroutine: Any, **options: Any) -> Any:
        return make(loop, _in_steps(coroutine, self._limit), **options)


def _plain_task(loop: Any, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
    return asyncio.Task(coroutine, loop=loop, **options)
