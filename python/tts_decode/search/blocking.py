"""Waits for code that may block its thread, such as a scorer of the user's: the wait ends in time even so."""

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

_GRACE = 0.5  # seconds that a step gets to clean up when the time is over already


async def wait_within(seconds: float, coroutine: Coroutine[Any, Any, T]) -> T:
    """`asyncio.wait_for`, which also ends a wait for a coroutine that blocks its thread.

    Each step of the coroutine, from one await to the next, runs on a thread of its own while the event loop
    stands still, so it may do what it could do in the loop. The same goes for the steps of tasks that it
    starts. A step that takes too long is abandoned: its thread, a daemon, goes on by itself. A coroutine that
    is cancelled, by the end of the time or with its caller, has half a second to clean up. One that goes on
    nevertheless is abandoned too, and so are the tasks that it started: of what is cancelled then, no step is
    begun any more.

    A loop in debug mode refuses calls from other threads. There the wait is `asyncio.wait_for`.

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
            # Tasks that it started may go on even where it has ended itself.
            limit.over = late or loop.time() >= limit.deadline
            if not task.done():
                task.cancel()
    if late and (task.cancelled() or not task.done()):
        raise asyncio.TimeoutError
    return task.result()


@dataclass
class _Limit:
    """deadline: in the loop's time. over: whether the wait has ended, and nobody waits for what goes on."""

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
            except BaseException as error:  # thrown in by the task, such as a cancellation
                if self._limit.over:
                    self._close()
                    raise
                step, grace = partial(self._coroutine.throw, error), _GRACE

    def _wait_for(self, step: Callable[[], Any], grace: float) -> tuple[bool, Any]:
        """Whether the coroutine ended with this step, and what it returned, or what it awaits now."""
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
        """Not here, nor when it is collected: it may block even so."""

        def close() -> None:
            with contextlib.suppress(BaseException):
                self._coroutine.close()

        threading.Thread(target=close, daemon=True).start()

    def _take(self, step: Callable[[], Any], task: Any, outcome: futures.Future[tuple[bool, Any]]) -> None:
        """Runs the step in this thread as if it ran in the loop's."""
        asyncio._set_running_loop(self._loop)
        if asyncio.current_task() is None:  # each thread has one of its own, from Python 3.14 on
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
