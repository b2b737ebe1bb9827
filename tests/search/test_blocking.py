"""A wait for code that blocks its thread ends in time, and code that does not block runs as in the loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from typing import Any

import pytest
from tts_decode import Branch, SamplingParams, TreeDecoder, gather
from tts_decode.rewards import self_evaluation
from tts_decode.search import SearchRun, best_of_n
from tts_decode.search.blocking import wait_within

BLOCKED = 20.0  # seconds; a wait that lasted as long would fail its test


async def sleeps() -> None:
    time.sleep(BLOCKED)


async def sleeps_after_an_await() -> None:
    await asyncio.sleep(0)
    time.sleep(BLOCKED)


async def sleeps_in_tasks() -> None:
    await gather(sleeps_after_an_await() for _ in range(3))


async def computes() -> None:
    end = time.monotonic() + BLOCKED
    while time.monotonic() < end:
        pass


async def waits() -> None:
    await asyncio.sleep(BLOCKED)


async def sleeps_when_cancelled() -> None:
    try:
        await asyncio.sleep(BLOCKED)
    finally:
        time.sleep(BLOCKED)


async def goes_on_when_cancelled() -> None:
    while True:
        with contextlib.suppress(asyncio.CancelledError):  # as `except:` around a request that is tried again
            await asyncio.sleep(BLOCKED)


async def goes_on_in_tasks() -> None:
    await gather(goes_on_when_cancelled() for _ in range(3))


async def leaves_a_task_that_goes_on() -> None:
    task = asyncio.ensure_future(goes_on_when_cancelled())
    await asyncio.sleep(0)
    time.sleep(BLOCKED)
    await task


async def blocks_when_given_up() -> None:
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(BLOCKED)
    try:
        await asyncio.sleep(BLOCKED)
    finally:
        time.sleep(BLOCKED)


BLOCKING = [
    *(sleeps, sleeps_after_an_await, sleeps_in_tasks, computes, waits, sleeps_when_cancelled),
    *(goes_on_when_cancelled, goes_on_in_tasks, leaves_a_task_that_goes_on, blocks_when_given_up),
]


@pytest.mark.parametrize("blocks", BLOCKING, ids=lambda f: f.__name__)
def test_the_wait_ends_in_time(blocks: Callable[[], Any]) -> None:
    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await wait_within(0.1, blocks())
        assert await asyncio.wait_for(asyncio.sleep(0, "the loop goes on"), 5) == "the loop goes on"

    began = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - began < BLOCKED / 2


@pytest.mark.parametrize("cancellations", [1, 2])  # the second while it cleans up
def test_a_caller_that_is_cancelled_is_not_held_up(cancellations: int) -> None:
    async def main() -> None:
        task = asyncio.ensure_future(wait_within(BLOCKED, goes_on_when_cancelled()))
        for _ in range(cancellations):
            await asyncio.sleep(0.05)
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    began = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - began < BLOCKED / 2


def test_steps_run_as_in_the_loop() -> None:
    variable: ContextVar[int] = ContextVar("variable", default=0)

    async def nested(event: asyncio.Event) -> str:
        await event.wait()
        return threading.current_thread().name

    async def work() -> Any:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        event = asyncio.Event()
        tasks = [asyncio.create_task(nested(event)) for _ in range(3)]
        await asyncio.sleep(0.01)
        event.set()
        names = await asyncio.wait_for(asyncio.gather(*tasks), 5)
        assert threading.current_thread() is not threading.main_thread()
        return loop, task, len(names), variable.get()

    async def main() -> None:
        variable.set(7)
        loop, task, count, value = await wait_within(30, work())
        assert loop is asyncio.get_running_loop()
        assert task is not None
        assert (count, value) == (3, 7)
        assert loop.get_task_factory() is None

    asyncio.run(main())


@pytest.mark.parametrize("error", [ValueError("no"), TimeoutError("its own"), KeyError(1)])
def test_errors_and_cancellation_go_through(error: Exception) -> None:
    cleaned = []

    async def fails() -> None:
        await asyncio.sleep(0)
        raise error

    async def cancelled() -> None:
        try:
            await asyncio.sleep(BLOCKED)
        finally:
            cleaned.append(True)

    async def main() -> None:
        with pytest.raises(type(error)) as caught:
            await wait_within(5, fails())
        assert caught.value is error
        task = asyncio.ensure_future(wait_within(5, cancelled()))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert cleaned == [True]

    asyncio.run(main())


@pytest.mark.parametrize("blocks", BLOCKING, ids=lambda f: f.__name__)
def test_a_scorer_that_blocks_ends_its_search_with_what_it_has(
    decoder: TreeDecoder, blocks: Callable[[], Awaitable[None]]
) -> None:
    async def scorer(branches: Sequence[Branch]) -> list[float]:
        await blocks()
        return [0.0] * len(branches)

    async def search() -> Any:
        root = await decoder.root("abc", SamplingParams(max_tokens=2))
        try:
            return await best_of_n(SearchRun(root, scorer_timeout=0.2), n=3, scorer=scorer)
        finally:
            root.release()

    began = time.monotonic()
    result = decoder.run(search())
    assert time.monotonic() - began < BLOCKED / 2
    assert result.stopped == "scorer scorer gave no scores within 0.2 s"
    assert len(result.candidates) == 3


def test_a_scorer_that_asks_the_model_gives_the_same_scores_with_a_limit(decoder: TreeDecoder) -> None:
    async def search(limit: float | None) -> Any:
        root = await decoder.root("abc", SamplingParams(max_tokens=3))
        run = SearchRun(root, scorer_timeout=limit)
        try:
            return await best_of_n(run, n=4, scorer=self_evaluation(yes="a", no="b"))
        finally:
            root.release()

    expected, *others = decoder.run_all([search(None), search(60), search(60)])
    for result in others:
        assert [c.score for c in result.candidates] == [c.score for c in expected.candidates]
        assert [c.tokens for c in result.candidates] == [c.tokens for c in expected.candidates]
