"""Text branches: what they ask for, why they end, and what they take of budgets and limits."""

import asyncio
import math
import random
import zlib

import pytest
from scripted import NEEDS_A_MODEL, random_script, run_scripted, scorer, scripted_decoder, text_options, words
from text_cases import PROMPT, grade, never
from tts_decode import Budget, SamplingParams, gather
from tts_decode.completions.completion import Completion, CompletionRequest
from tts_decode.completions.decoder import TextDecoder, render_turns
from tts_decode.errors import UnsupportedByEngineError
from tts_decode.search import STRATEGIES, best_of_n, get_strategy

pytestmark = pytest.mark.usefixtures("one_thread")


def test_requests_carry_the_sampling_parameters():
    decoder = scripted_decoder(lambda prefix, k: ("word\n", "stop_string"))
    sampling = SamplingParams(
        temperature=0.5, top_p=0.9, top_k=7, min_p=0.1, repetition_penalty=1.2, stop="\n", seed=9
    )

    async def search():
        root = await decoder.root(PROMPT, sampling)
        first, second = root.fork(2)
        await gather(first.step(), second.step(temperature=0.0))
        await first.step()

    decoder.run(search())
    one, two, three = (call.request for call in decoder.complete.calls)
    assert one == CompletionRequest(PROMPT, 256, 0.5, 0.9, ("\n",), one.seed, True, 7, 0.1, 1.2)
    assert two.temperature == 0.0
    assert three.prompt == PROMPT + "word\n"
    assert len({one.seed, two.seed, three.seed}) == 3
    assert all(0 <= request.seed < 2**31 for request in (one, two, three))


@pytest.mark.parametrize("own", [0, 9])
def test_a_steps_seed_holds_whatever_the_branchs_is(own):
    decoder = scripted_decoder(lambda prefix, k: ("word\n", "stop_string"))

    async def search():
        for seed in (0, 9, 4):
            alone = await decoder.root(PROMPT, SamplingParams(seed=seed))
            root = await decoder.root(PROMPT, SamplingParams(seed=own))
            (child,) = root.fork()
            await alone.step()
            await child.step(seed=seed)
            await root.step(seed=seed)

    decoder.run(search())
    seeds = [call.request.seed for call in decoder.complete.calls]
    assert seeds[0::3] == seeds[1::3] == seeds[2::3]
    assert len(set(seeds)) == 3


def test_messages_are_rendered():
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]
    assert render_turns(messages) == "System: Be brief.\nUser: 2 + 2?\nAssistant:"
    decoder = TextDecoder(never, render=lambda turns: f"<{turns[-1]['content']}>")
    assert decoder.run(decoder.root(messages)).full_text == "<2 + 2?>"
    assert decoder.knows_chat
    assert not TextDecoder(never).knows_chat


@pytest.mark.parametrize(
    ("sampling", "completion", "reason", "final"),
    [
        ({}, Completion("a b", "eos"), "eos", True),
        ({"stop": ";"}, Completion("a; b", "stop_string"), "stop_string", False),
        ({"max_step_tokens": 3}, Completion("abc", "length", (7, 8, 9)), "max_step_tokens", False),
        ({"max_step_tokens": 4}, Completion("abc", "length", (7, 8, 9)), "length", True),
        ({"max_step_tokens": 9}, Completion("", "length"), "length", True),
        ({"max_step_tokens": 9}, Completion("untold", "length"), "max_step_tokens", False),
        ({"max_tokens": 3}, Completion("abc", "length", (7, 8, 9)), "max_tokens", True),
        ({"max_tokens": 9}, Completion("untold", "length"), "max_tokens", True),
    ],
)
def test_finish_reasons(sampling, completion, reason, final):
    async def complete(request):
        return completion

    async def search(decoder):
        root = await decoder.root(PROMPT)
        step = await root.step()
        return root, step

    decoder = TextDecoder(complete, sampling=SamplingParams(**sampling))
    root, step = decoder.run(search(decoder))
    assert step.reason == reason
    assert root.finished == final
    assert root.text == step.text == completion.text
    if final:
        again = decoder.run(root.step())
        assert (again.tokens, again.reason) == ((), reason)


def test_an_end_can_be_taken_back_and_gone_on_from():
    """Budget forcing drops the end token, appends a text and continues; in that text no cut is possible."""
    said = {PROMPT: ("So 4.", "eos"), PROMPT + "So 4. Wait,": (" no, 5.", "eos")}

    async def search(decoder):
        root = await decoder.root(PROMPT)
        await root.step()
        root.truncate(root.length - 1)
        assert (root.text, root.finished) == ("So 4.", False)
        assert math.isnan((await root.extend(" Wait,")).item())
        await root.step()
        return root

    decoder = scripted_decoder(lambda prefix, k: said[prefix])
    root = decoder.run(search(decoder))
    assert root.text == "So 4. Wait, no, 5."
    assert root.tokens.count(-1) == 2  # the prompt and the forced text
    assert root.length == 1 + 2 + 1 + 3


@pytest.mark.parametrize("seed", range(5))
def test_concurrent_calls_stay_within_the_budget(seed):
    rng = random.Random(seed)
    budget = Budget(max_tokens=rng.randint(20, 60))
    script = random_script(seed)
    decoder = scripted_decoder(script, latency=lambda prefix, k: (len(prefix) + k) % 3)
    sampling = SamplingParams(max_tokens=50, max_step_tokens=rng.randint(3, 12))
    result = run_scripted(
        decoder, best_of_n, PROMPT, sampling=sampling, budget=budget, n=8, scorer=scorer(grade)
    )
    assert budget.tokens_used <= budget.max_tokens
    assert budget.tokens_used == sum(len(c.tokens) for c in result.candidates)
    assert budget.tokens_used == decoder.stats().generated_tokens
    if not all(c.complete for c in result.candidates):
        assert budget.exhausted


def test_what_a_call_did_not_use_of_the_budget_goes_to_those_that_wait():
    """Budget 10, calls that may use 8 but use 2: all but the last get the 8 they ask for."""
    decoder = scripted_decoder(lambda prefix, k: ("yes", "eos"))
    budget = Budget(max_tokens=10)

    async def search():
        root = await decoder.root(PROMPT, SamplingParams(max_tokens=8), budget)
        children = root.fork(6)
        await gather(child.step() for child in children)
        return [child.finish_reason for child in children]

    assert decoder.run(search()) == ["eos"] * 5 + ["budget"]
    assert [call.request.max_tokens for call in decoder.complete.calls] == [8, 8, 6, 4, 2]


def test_calls_in_flight_are_limited_and_metered():
    flying, most = 0, 0

    async def complete(request):
        nonlocal flying, most
        flying += 1
        most = max(most, flying)
        await asyncio.sleep(0.002)
        flying -= 1
        return Completion("yes", "eos", (5, 6))

    decoder = TextDecoder(complete, max_concurrency=3)
    for _ in range(2):  # a second event loop works too
        run_scripted(decoder, best_of_n, PROMPT, n=7, scorer=scorer(grade))
    assert most == 3
    stats = decoder.stats()
    assert (stats.steps, stats.generated_tokens) == (14, 28)
    assert (stats.branches, stats.resident_bytes, stats.cost.combined()) == (0, 0, 0)
    assert stats.seconds >= 2 * 3 * 0.002


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_runs_on_a_completion_call(name):
    def logprobs_of(prefix, text):
        return [-1.0 - zlib.crc32((prefix + word).encode()) % 8 / 8 for word in words(text)]

    def run():
        decoder = scripted_decoder(random_script(3), logprobs_of=logprobs_of)
        return run_scripted(decoder, get_strategy(name), PROMPT, **text_options(name))

    if name in NEEDS_A_MODEL:
        with pytest.raises(UnsupportedByEngineError):
            run()
        return
    result = run()
    assert result.candidates
    assert result.best.text
    again = run()
    assert (again.answer, again.candidates) == (result.answer, result.candidates)
