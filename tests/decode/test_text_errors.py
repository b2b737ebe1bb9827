"""Requests that a text engine refuses or cannot meet; calls that fail, are cancelled or released."""

import asyncio
import math

import pytest
from scripted import random_script, run_scripted, scripted_decoder
from text_cases import PROMPT, grade, never
from tts_decode import Budget, SamplingParams
from tts_decode.completions.completion import Completion
from tts_decode.completions.decoder import TextDecoder
from tts_decode.errors import BranchReleasedError, EngineError, UnsupportedByEngineError
from tts_decode.rewards import mean_logprob, self_evaluation, verifier
from tts_decode.search import atts, best_of_n, ets, lm_beam_search, self_consistency

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_failed_call_leaves_the_branch_and_the_budget_as_they_were():
    fail = True

    async def complete(request):
        if fail:
            raise ConnectionError("server gone")
        return Completion("yes", "eos", (5, 6))

    async def search(decoder):
        nonlocal fail
        root = await decoder.root(PROMPT, budget=budget)
        with pytest.raises(ConnectionError, match="server gone"):
            await root.step()
        assert (root.length, root.text, root.steps, root.finished) == (1, "", [], False)
        fail = False
        await root.step()
        return root.text

    budget = Budget(max_tokens=3)
    decoder = TextDecoder(complete)
    assert decoder.run(search(decoder)) == "yes"
    assert budget.tokens_used == 2


def test_release_and_cancellation_end_the_call():
    cancelled = []

    async def complete(request):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(request.prompt)
            raise

    async def search(decoder):
        root = await decoder.root(PROMPT, budget=Budget(max_tokens=100))
        released, dropped = root.fork(2)
        steps = [asyncio.ensure_future(branch.step(max_step_tokens=50)) for branch in (released, dropped)]
        await asyncio.sleep(0.001)
        with pytest.raises(RuntimeError, match="already waits"):
            await released.step()
        released.release()
        steps[1].cancel()
        with pytest.raises(BranchReleasedError):
            await steps[0]
        with pytest.raises(asyncio.CancelledError):
            await steps[1]
        with pytest.raises(BranchReleasedError):
            released.fork()
        assert dropped.length == 1
        waiting = asyncio.ensure_future(dropped.step())  # all of the budget is free again
        await asyncio.sleep(0.001)
        waiting.cancel()

    decoder = TextDecoder(complete)
    decoder.run(search(decoder))
    assert cancelled == [PROMPT] * 3


def test_what_happens_to_a_branch_while_it_waits():
    """Declared finished, it keeps what its call brings; released while it waits for the budget's tokens, it
    leaves them to the others."""
    decoder = scripted_decoder(lambda prefix, k: ("yes\n", "stop_string"), latency=lambda prefix, k: 5)

    async def search():
        root = await decoder.root(PROMPT, SamplingParams(max_tokens=8), Budget(max_tokens=9))
        declared, released, last = root.fork(3)
        steps = [asyncio.ensure_future(branch.step()) for branch in (declared, released, last)]
        await asyncio.sleep(0)
        declared.finish("answer")
        released.release()
        with pytest.raises(BranchReleasedError):
            await steps[1]
        assert (await steps[0]).reason == "answer"
        assert (declared.text, declared.finish_reason) == ("yes\n", "answer")
        assert (await steps[2]).text == "yes\n"
        assert root.budget.tokens_used == 2

    decoder.run(search())
    assert [call.request.max_tokens for call in decoder.complete.calls] == [8, 8]


@pytest.mark.parametrize(
    ("completion", "error", "message"),
    [
        ("text", TypeError, "complete: got a str from it"),
        (Completion("a b c", "length", (1, 2, 3)), EngineError, "has 3 tokens; at most 2 were asked"),
        (Completion("a", "stop_string", (1,)), EngineError, "holds none of"),
    ],
)
def test_wrong_completions_are_refused(completion, error, message):
    async def complete(request):
        return completion

    async def search(decoder):
        root = await decoder.root(PROMPT, SamplingParams(max_tokens=2, stop=";"))
        with pytest.raises(error, match=message):
            await root.step()
        return root.length

    decoder = TextDecoder(complete)
    assert decoder.run(search(decoder)) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a", "stop"), "finish_reason: got 'stop'"),
        (("a b", "eos", (1, 2, 3), (0.0,)), "logprobs: got 1 entries for 3 tokens"),
        (("a b", "length", (), (-1.0,)), "logprobs: got 1 entries for 0 tokens"),
        (("a b", "length", (1, 2), (), (), ("a", "b")), "expected what adds up"),
        (("ab", "eos", (1, 2), (), (), ("a", "b")), "expected '' for the end token"),
        (("", "stop_string"), "text: got none after 'stop_string'"),
    ],
)
def test_inconsistent_completions_cannot_be_made(arguments, message):
    with pytest.raises(ValueError, match=message):
        Completion(*arguments)


def test_cuts_inside_a_step_need_the_texts_of_its_tokens():
    async def complete(request):
        return Completion("one two", "eos", (1, 2, 3))

    async def search(decoder):
        root = await decoder.root(PROMPT)
        await root.step()
        with pytest.raises(UnsupportedByEngineError, match=r"at=2, inside a step .* as at 1"):
            root.fork(at=2)
        with pytest.raises(UnsupportedByEngineError, match="length=2"):
            root.truncate(2)
        assert root.length == 4
        (before_end,) = root.fork(at=3)
        assert (before_end.text, before_end.finished, before_end.steps) == ("one two", False, [])

    decoder = TextDecoder(complete)
    decoder.run(search(decoder))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda branch: branch.next_logprobs([1]), "by token id"),
        (lambda branch: branch.logprobs_of("yes"), "score="),
        (lambda branch: branch.extend([1, 2]), "token ids"),
        (lambda branch: branch.step(stop_token_ids=(4,)), "SamplingParams.stop_token_ids"),
        (lambda branch: branch.decoder.root([1, 2]), "token ids"),
        (lambda branch: branch.decoder.root("a", budget=Budget(max_cost=1.0)), "max_cost"),
        (lambda branch: self_evaluation()([branch]), "token_ids"),
        (lambda branch: branch.read("a", [0]), "Branch.read"),
        (lambda branch: branch.decoder.pin(branch), "TreeDecoder.pin"),
        (lambda branch: lm_beam_search(branch), "log-probabilities by token id"),
        (lambda branch: ets(branch, scorer=verifier(grade)), "hidden states"),
    ],
)
def test_what_is_not_there_is_named(call, message):
    async def search(decoder):
        root = await decoder.root(PROMPT)
        await call(root)

    decoder = scripted_decoder(random_script(0))
    with pytest.raises(UnsupportedByEngineError, match=message):
        decoder.run(search(decoder))


def test_unknown_log_probabilities_are_nan_and_no_score():
    async def complete(request):
        assert not request.logprobs
        return Completion("yes", "eos", (5, 6))

    decoder = TextDecoder(complete, logprobs=False)
    result = run_scripted(decoder, self_consistency, PROMPT, n=3)
    assert math.isnan(result.best.logprob)
    with pytest.raises(ValueError, match="score nan"):
        run_scripted(decoder, best_of_n, PROMPT, n=3, scorer=mean_logprob())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"complete": "http://..."}, "complete: got str, expected a function"),
        ({"score": 3}, "score: got int, expected a function"),
        ({"sampling": {}}, "sampling: got dict, expected a SamplingParams"),
        ({"max_concurrency": 0}, "max_concurrency: got 0, expected >= 1"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        TextDecoder(**{"complete": never} | arguments)


@pytest.mark.parametrize("prompt", ["", [], 5, {"role": "user"}, [{"role": "user"}]])
def test_bad_prompts_are_refused(prompt):
    decoder = TextDecoder(never)
    with pytest.raises((TypeError, ValueError), match="prompt"):
        decoder.run(decoder.root(prompt))


def test_problems_may_fail_alone():
    decoder = scripted_decoder(lambda prefix, k: ("fine", "eos"))

    async def good():
        root = await decoder.root("Q: ")
        return (await root.step()).text

    async def bad():
        raise ValueError("this one")

    first, error, last = decoder.run_all([good(), bad(), good()], return_exceptions=True)
    assert (first, str(error), last) == ("fine", "this one", "fine")
    with pytest.raises(ValueError, match="this one"):
        decoder.run_all([good(), bad()])


def test_atts_says_that_it_needs_an_engine_that_scores():
    async def complete(request):
        return Completion("yes", "eos", (5, 6))

    with pytest.raises(UnsupportedByEngineError, match=r"log-probabilities.*TextDecoder's score="):
        run_scripted(TextDecoder(complete), atts, PROMPT, n=2, calibration=[1.0, 2.0, 3.0])
