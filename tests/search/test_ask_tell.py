"""AskTell: the same search as with an event loop, whatever the order of the answers."""

import asyncio
import math
import random
import zlib
from collections import Counter
from contextlib import suppress

import numpy as np
import pytest
from scripted import (
    NEEDS_A_MODEL,
    ScriptedModel,
    counted,
    random_script,
    run_scripted,
    scorer,
    scripted_decoder,
    text_options,
    words,
)
from tts_decode import Budget, SamplingParams, gather
from tts_decode.completions.completion import Completion, CompletionRequest
from tts_decode.completions.decoder import TextDecoder
from tts_decode.errors import EngineError, UnsupportedByEngineError
from tts_decode.search import (
    STRATEGIES,
    Journal,
    beam_search,
    best_of_n,
    get_strategy,
    rebase,
    self_consistency,
)
from tts_decode.search.ask_tell import AskTell, LogprobRequest, RequestWithdrawnError, ScoreRequest

PROMPT = "Question?\n"


def grade(text):
    return sum(ord(char) * (i % 5 + 1) for i, char in enumerate(text)) % 101 / 101


def logprobs_of(prefix, text):
    return [-1.0 - zlib.crc32((prefix + word).encode()) % 8 / 8 for word in words(text)]


class Caller:
    """Answers by a script, whose k-th answer to a prefix goes to the k-th request with it as asked for."""

    def __init__(self, seed):
        self.script = random_script(seed)
        self.k = {}  # request id -> which request with its prefix it is
        self.asked = Counter()

    def answer(self, request):
        if isinstance(request, ScoreRequest):
            assert all(prompt.startswith("Question?\n") for prompt in request.prompts)
            return [grade(text) for text in request.texts]
        if isinstance(request, LogprobRequest):
            return logprobs_of(request.prompt, request.text)
        return Completion(*self.script(request.prompt, self.k[request.id]))

    def see(self, requests):
        for request in requests:
            if isinstance(request, CompletionRequest) and request.id not in self.k:
                self.k[request.id] = self.asked[request.prompt]
                self.asked[request.prompt] += 1


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("strategy", "options", "scores"),
    [
        (best_of_n, {}, {}),
        (best_of_n, {"agg_strategy": "mean"}, {"scorer": "ask"}),
        (beam_search, {"beam_width": 2}, {}),
        (rebase, {}, {"scorer": scorer(grade)}),
        (self_consistency, {}, {"scorer": "ask"}),
    ],
)
def test_answers_in_any_order_make_the_search_that_an_engine_makes(strategy, options, scores, seed):
    """Texts that many branches share make the order matter to a script, so here a text is answered alike
    however often it is asked, but for the first step."""
    rng = random.Random(seed)
    caller = Caller(seed)
    script = caller.script
    caller.script = lambda prefix, k: script(prefix, k if prefix == PROMPT else 0)

    async def plain(request):
        return Completion(*model(request.prompt))

    model = counted(caller.script)
    expected = run_scripted(TextDecoder(plain), strategy, PROMPT, n=4, scorer=scorer(grade), **options)

    with AskTell(strategy, PROMPT, n=4, **options, **scores) as search:
        while not search.done:
            requests = search.ask()
            assert requests == search.ask()  # nothing is asked twice
            caller.see(requests)
            for request in rng.sample(requests, rng.randint(1, len(requests))):
                search.tell(request.id, caller.answer(request))
                search.tell(request.id, caller.answer(request))  # told again: nothing changes
        result = search.result
    assert sorted(c.text for c in result.candidates) == sorted(c.text for c in expected.candidates)
    assert result.best.score == expected.best.score
    assert search.ask() == []


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in NEEDS_A_MODEL])
def test_every_strategy_can_be_asked_and_told(name):
    options = text_options(name)
    decoder = scripted_decoder(random_script(3), logprobs_of=logprobs_of)
    expected = run_scripted(decoder, get_strategy(name), PROMPT, **options)
    caller, model = Caller(3), ScriptedModel(random_script(3))
    with AskTell(get_strategy(name), PROMPT, logprobs_of=True, **options) as search:
        while not search.done:
            for request in search.ask():
                of_model = isinstance(request, CompletionRequest)
                answer = asyncio.run(model(request)) if of_model else caller.answer(request)
                with suppress(RequestWithdrawnError):  # by a strategy that takes the first to finish
                    search.tell(request.id, answer)
    assert search.result.answer == expected.answer


@pytest.mark.parametrize("strategy", [best_of_n, rebase])
@pytest.mark.parametrize("answered", [0, 1, 7, 15])
def test_a_journal_asks_for_what_it_lacks_only(strategy, answered, tmp_path):
    """Both searches see the same answer to the same text, so the second ends as one that was never cut."""
    script = random_script(11)

    def run(journal, limit=None):
        told = []
        with AskTell(strategy, PROMPT, n=4, journal=journal) as search:
            while not search.done:
                for request in search.ask()[:1]:
                    if len(told) == limit:
                        return told, None
                    if isinstance(request, ScoreRequest):
                        answer = [grade(text) for text in request.texts]
                    else:
                        answer = Completion(*script(request.prompt, 0))
                    told.append((request, answer))
                    search.tell(request.id, answer)
        return told, search.result

    whole, expected = run(None)
    run(Journal(tmp_path / "search.jsonl"), answered)
    rest, result = run(Journal(tmp_path / "search.jsonl", resume=True))
    assert [answer for _, answer in rest] == [answer for _, answer in whole[answered:]]
    assert result.answer == expected.answer
    assert [c.text for c in result.candidates] == [c.text for c in expected.candidates]


def test_a_search_is_ready_to_ask_as_soon_as_it_can_go_on():
    """Best-of-n has no barrier: an answer told brings the next step of its own branch."""
    with AskTell(best_of_n, PROMPT, n=3) as search:
        _, second, third = search.ask()
        search.tell(second.id, Completion("two\n", "stop_string"))
        assert [request.prompt for request in search.ask()] == [PROMPT, PROMPT, PROMPT + "two\n"]
        search.tell(third.id, Completion("three", "eos"))
        (score,) = [request for request in search.ask() if isinstance(request, ScoreRequest)]
        assert score == ScoreRequest(score.id, (PROMPT,), ("three",))
        assert not search.done
        with pytest.raises(RuntimeError, match="3 requests are open"):
            _ = search.result


def test_requests_carry_sampling_budget_and_rendered_messages():
    budget = Budget(max_tokens=30)
    search = AskTell(
        self_consistency,
        [{"role": "user", "content": "2 + 2?"}],
        sampling=SamplingParams(temperature=0.3, stop="\n", max_tokens=9),
        budget=budget,
        render=lambda messages: f"[{messages[0]['content']}]",
        n=2,
    )
    requests = search.ask()
    assert [(r.prompt, r.temperature, r.stop, r.max_tokens) for r in requests] == [
        ("[2 + 2?]", 0.3, ("\n",), 9)
    ] * 2
    assert requests[0].seed != requests[1].seed
    for request in requests:
        search.tell(request.id, Completion(" 4", "eos", (5, 6)))
    assert search.result.answer == " 4"
    assert budget.tokens_used == 4


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


def test_what_a_strategy_waits_for_elsewhere_is_waited_for():
    """A scorer in a thread, and one that sleeps: `ask` returns when there is something to answer."""

    async def slow(branches):
        await asyncio.sleep(0.01)
        return await asyncio.to_thread(lambda: [grade(branch.text) for branch in branches])

    caller = Caller(2)
    with AskTell(beam_search, PROMPT, n=2, beam_width=2, scorer=slow) as search:
        turns = 0
        while not search.done:
            requests = search.ask()
            assert requests or search.done
            caller.see(requests)
            for request in requests:
                search.tell(request.id, caller.answer(request))
            turns += 1
    expected = run_scripted(
        scripted_decoder(caller.script), beam_search, PROMPT, n=2, beam_width=2, scorer=scorer(grade)
    )
    assert [c.text for c in search.result.candidates] == [c.text for c in expected.candidates]
    assert turns > 1


def test_several_searches_take_turns_in_one_thread():
    searches = [AskTell(rebase, PROMPT, n=3, sampling=SamplingParams(seed=seed)) for seed in range(3)]
    callers = [Caller(seed) for seed in range(3)]
    while not all(search.done for search in searches):
        for search, caller in zip(searches, callers, strict=True):
            requests = search.ask()
            caller.see(requests)
            for request in requests:
                search.tell(request.id, caller.answer(request))
    for seed, search in enumerate(searches):
        expected = run_scripted(
            scripted_decoder(random_script(seed)), rebase, PROMPT, n=3, scorer=scorer(grade)
        )
        assert search.result.answer == expected.answer


def test_inside_an_event_loop_it_says_what_to_use_instead():
    async def inside():
        AskTell(best_of_n, PROMPT, n=1)

    with pytest.raises(RuntimeError, match="await the strategy on a TextDecoder's root instead"):
        asyncio.run(inside())
