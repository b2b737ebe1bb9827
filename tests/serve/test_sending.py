"""Replies are sent in time or not at all, and long answers are written outside the event loop."""

import asyncio
import threading

import pytest
from tts_decode.serve.answers import CompletionForm
from tts_decode.serve.sending import NotTakenError, Sender


async def never(message):
    await asyncio.Event().wait()


def test_a_part_that_is_not_taken_is_given_up():
    async def run():
        sender = Sender(never, 0.05)
        with pytest.raises(NotTakenError):
            await sender({"type": "http.response.body"})
        sender.close()

    asyncio.run(run())


def test_who_cancels_a_part_gets_the_cancellation():
    async def run():
        sender = Sender(never, 60.0)
        asyncio.get_running_loop().call_later(0.05, asyncio.current_task().cancel)
        try:
            await sender({"type": "http.response.body"})
        finally:
            sender.close()

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(run())


def test_parts_may_take_longer_in_all_than_one_may():
    async def slowly(message):
        await asyncio.sleep(0.1)

    async def run():
        sender = Sender(slowly, 1.0)
        for _ in range(12):
            await sender({"type": "http.response.body"})
        sender.close()
        await asyncio.sleep(0.3)

    asyncio.run(run())


def test_long_answers_are_written_beside_the_loop(served, monkeypatch):
    writers = []
    whole = CompletionForm.whole

    def noting(self, pieces, usage):
        writers.append(threading.current_thread())
        return whole(self, pieces, usage)

    monkeypatch.setattr(CompletionForm, "whole", noting)
    served.complete("The quick", max_tokens=4, logprobs=1)
    served.complete("The quick", max_tokens=200, logprobs=20)  # 200 x 21 entries
    loop, beside = writers
    assert loop is not beside
    assert "tts-decoder" not in (loop.name, beside.name)
