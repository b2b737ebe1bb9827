"""Calls that are cancelled at any moment: their branches act like a fresh prompt of what is left."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from primitives import PROMPT, assert_like_fresh, at_every_cycle, cancel_after, make
from transformers import PreTrainedModel
from tts_decode import SamplingParams, TreeDecoder, gather

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_cancelled_step_leaves_the_batch_and_a_valid_branch(decoder: TreeDecoder) -> None:
    async def search() -> None:
        root = await decoder.root(PROMPT, SamplingParams(max_tokens=400, max_step_tokens=400))
        slow, quick = root.fork(2)
        task = asyncio.create_task(slow.step())
        await quick.step(max_step_tokens=5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert 0 < slow.length - len(PROMPT) <= 7
        assert slow.steps == []
        before = decoder.stats().generated_tokens
        await quick.step(max_step_tokens=3)
        assert decoder.stats().generated_tokens - before == 3  # the cancelled branch takes no part
        await assert_like_fresh(slow)
        await slow.step(max_step_tokens=2)
        for branch in (root, slow, quick):
            branch.release()

    decoder.run(search())


def test_a_step_cancelled_right_before_a_tick_leaves_its_branch_free(decoder: TreeDecoder) -> None:
    async def search() -> None:
        root = await decoder.root(PROMPT, SamplingParams(max_step_tokens=400))
        for wait in range(12):
            branch = root.fork()[0]
            task = asyncio.create_task(branch.step())
            for _ in range(wait):
                await asyncio.sleep(0)
            task.cancel()
            decoder._scheduler._tick()  # before the cancelled task runs
            with pytest.raises(asyncio.CancelledError):
                await task
            length = branch.length
            await branch.step(max_step_tokens=2)
            assert branch.length == length + 2
            branch.release()
        root.release()

    decoder.run(search())


def test_a_cancelled_extend_changes_nothing(model: PreTrainedModel) -> None:
    decoder = make(model, max_batch_tokens=8)

    async def search() -> None:
        root = await decoder.root(PROMPT)
        branch = root.fork()[0]
        before = decoder.runtime.tree.length(branch.id)
        task = asyncio.create_task(branch.extend(list(range(100))))
        while decoder.runtime.tree.length(branch.id) < before + 16:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert branch.tokens == PROMPT
        assert branch.logprobs == []
        assert decoder.runtime.tree.length(branch.id) == before
        await assert_like_fresh(branch)
        await branch.extend(list(range(100)))
        await assert_like_fresh(branch)

    decoder.run(search())


def test_a_cancelled_prompt_leaves_nothing(model: PreTrainedModel) -> None:
    decoder = make(model, max_batch_tokens=8)

    async def search() -> None:
        task = asyncio.create_task(decoder.root(PROMPT))
        twin = asyncio.create_task(decoder.root(PROMPT))
        while not decoder.stats().resident_bytes:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await assert_like_fresh(await twin)

    decoder.run(search())
    assert decoder.stats().resident_bytes == 0


@pytest.mark.parametrize("call", ["step", "extend", "extend one", "next_logprobs", "root"])
def test_a_call_may_be_cancelled_at_any_moment(model: PreTrainedModel, call: str) -> None:
    """At every cycle of the event loop from the call to its end, also right before and right after a tick."""
    decoder = make(model, max_batch_tokens=16)

    async def cancelled_after(cycles: int) -> bool:
        root = await decoder.root(PROMPT)
        (branch,) = root.fork()
        if call == "next_logprobs":
            branch.truncate(5)
        tokens, length = list(branch.tokens), decoder.runtime.tree.length(branch.id)
        calls = {
            "step": lambda: branch.step(max_step_tokens=3),
            "extend": lambda: branch.extend([5] * 40),
            "extend one": lambda: branch.extend([5]),
            "next_logprobs": branch.next_logprobs,
            "root": lambda: decoder.root([7] * 40),
        }
        task: asyncio.Task[Any] = asyncio.create_task(calls[call]())
        done = await cancel_after(task, cycles)
        if done and call == "root":
            task.result().release()
        assert decoder.stats().branches == 2
        if call.startswith("extend") and branch.tokens == tokens:
            assert decoder.runtime.tree.length(branch.id) == length
        await branch.step(max_step_tokens=2)
        await assert_like_fresh(branch)
        root.release()
        branch.release()
        return done

    at_every_cycle(decoder, cancelled_after)


def test_first_finisher_cancels_its_siblings(decoder: TreeDecoder) -> None:
    async def search() -> None:
        root = await decoder.root(PROMPT)
        children = root.fork(4)
        tasks = [
            asyncio.create_task(child.step(max_step_tokens=5 + 20 * i)) for i, child in enumerate(children)
        ]
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        assert len(done) == 1
        assert decoder.stats().generated_tokens <= 4 * 6
        for branch in (root, *children):
            branch.release()

    decoder.run(search())


def test_gather_cancels_the_rest_on_failure() -> None:
    cancelled = []

    async def fails() -> None:
        await asyncio.sleep(0)
        raise ValueError("this one")

    async def waits() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def search() -> None:
        with pytest.raises(ValueError, match="this one"):
            await gather(waits(), fails(), waits())
        assert cancelled == [True, True]
        assert await gather(asyncio.sleep(0, x) for x in (1, 2)) == [1, 2]

    asyncio.run(search())
