"""AskTell: answers that are wrong, late or errors, and a search that is closed."""

import asyncio
import math

import numpy as np
import pytest
from ask_tell_caller import PROMPT
from tts_decode import SamplingParams, gather
from tts_decode.completions.completion import Completion
from tts_decode.errors import EngineError, UnsupportedByEngineError
from tts_decode.search import beam_search, best_of_n
from tts_decode.search.ask_tell import AskTell, RequestWithdrawnError


def test_wrong_answers_are_refused_and_the_request_stays_open():
    with AskTell(best_of_n, PROMPT, n=1, sampling=SamplingParams(stop=";", max_tokens=2)) as search:
        (request,) = search.ask()
        for answer, error, message in (
            ("4", TypeError, "got str, expected a Completion"),
            ([0.5], TypeError, "got list, expected a Completion"),
            (Completion("4", "stop_string"), EngineError, "holds none of"),
            (Completion("a b c", "length", (1, 2, 3)), EngineError, "has 3 tokens; at most 2"),
        ):
            with pytest.raises(error, match=message):
                search.tell(request.id, answer)
            assert search.ask() == [request]
        search.tell(request.id, Completion("4", "eos"))
        (request,) = search.ask()
        for answer, error, message in (
            (Completion("4", "eos"), TypeError, "got Completion, expected a list of numbers"),
            (0.5, TypeError, "got float"),
            ([0.5, 0.5], ValueError, "got 2 scores, expected 1, one a text"),
            ([math.nan], ValueError, "finite"),
        ):
            with pytest.raises(error, match=message):
                search.tell(request.id, answer)
            assert search.ask() == [request]
        search.tell(request.id, np.array([0.25], np.float32))
        assert search.result.best.score == 0.25


def test_unknown_and_late_answers_are_told_apart():
    async def first_of_two(root):
        branches = root.fork(2)
        steps = [asyncio.ensure_future(branch.step()) for branch in branches]
        done, waiting = await asyncio.wait(steps, return_when=asyncio.FIRST_COMPLETED)
        for step in waiting:
            step.cancel()
        for branch in branches:
            branch.release()
        return done.pop().result().text

    search = AskTell(first_of_two, PROMPT)
    one, two = search.ask()
    for unknown in (0, 3, "1"):
        with pytest.raises(LookupError, match=rf"id={unknown!r} was never asked; open are \[1, 2\]"):
            search.tell(unknown, Completion("a", "eos"))
    search.tell(two.id, Completion("fast", "eos"))
    assert search.done
    assert search.result == "fast"
    with pytest.raises(RequestWithdrawnError, match="id=1"):
        search.tell(one.id, Completion("slow", "eos"))
    search.tell(two.id, Completion("fast", "eos"))
    with pytest.raises(ValueError, match="id 2: got another answer"):
        search.tell(two.id, Completion("other", "eos"))


def test_errors_of_the_strategy_come_out_of_ask_and_tell():
    with pytest.raises(ValueError, match="n: got 0"):
        AskTell(best_of_n, PROMPT, n=0).ask()

    search = AskTell(beam_search, PROMPT, n=2, beam_width=2)
    one, two = search.ask()
    with pytest.raises(ConnectionError, match="engine gone"):
        search.tell(one.id, ConnectionError("engine gone"))
    assert search.done
    for call in (search.ask, lambda: search.result):
        with pytest.raises(ConnectionError, match="engine gone"):
            call()
    with pytest.raises(RequestWithdrawnError):
        search.tell(two.id, Completion("a", "eos"))

    async def asks_too_much(root):
        await root.next_logprobs()

    with pytest.raises(UnsupportedByEngineError):
        AskTell(asks_too_much, PROMPT).ask()


def test_a_strategy_meets_an_error_as_its_engines():
    async def tries_again(root):
        try:
            await root.step()
        except ConnectionError:
            await root.step()
        return root.text

    search = AskTell(tries_again, PROMPT)
    search.tell(search.ask()[0].id, ConnectionError())
    (again,) = search.ask()
    assert again.prompt == PROMPT
    search.tell(again.id, Completion("yes", "eos"))
    assert search.result == "yes"


def test_close_cancels_the_search():
    ended = []

    async def strategy(root):
        branches = root.fork(3)
        try:
            await gather(branch.step() for branch in branches)
        finally:
            ended.append(root.decoder.stats().branches)

    with AskTell(strategy, PROMPT) as search:
        (request, _, _) = search.ask()
    assert ended == [4]
    assert search.done
    assert search.ask() == []
    with pytest.raises(RequestWithdrawnError):
        search.tell(request.id, Completion("a", "eos"))
    with pytest.raises(RuntimeError, match="closed before its end"):
        _ = search.result
    search.close()
    AskTell(strategy, PROMPT).close()  # before it began
    assert ended == [4]


def test_inside_an_event_loop_it_says_what_to_use_instead():
    async def inside():
        AskTell(best_of_n, PROMPT, n=1)

    with pytest.raises(RuntimeError, match="await the strategy on a TextDecoder's root instead"):
        asyncio.run(inside())
