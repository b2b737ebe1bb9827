"""SearchRun: what it holds, what it records of steps that were cut off, and what it refuses."""

import asyncio
import time

import pytest
from scripted import scripted_decoder
from tiny_models import EOS, byte_tokenizer, tiny_model
from tts_decode import Budget, SamplingParams, TreeDecoder
from tts_decode.errors import UnsupportedByEngineError
from tts_decode.rewards import verifier
from tts_decode.search import STRATEGIES, SearchRun, best_of_n, strategy

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def decoder():
    sampling = SamplingParams(max_tokens=24, max_step_tokens=6, seed=5, suppress_token_ids=(EOS,))
    return TreeDecoder(tiny_model(), byte_tokenizer(), kv_bytes=16 << 20, sampling=sampling)


def script(prefix, k):
    steps = prefix.count("\n")
    return (f"step {steps} {'abcdefgh'[k]}\n", "stop_string") if steps < 2 else ("It is 4.", "eos")


def searched(decoder, body, *, prompt="Q: ", budget=None, **limits):
    """The result of a search by `body(run)`; nothing of it may be left."""
    made = strategy("for this test")(body)
    del STRATEGIES[made.name]

    async def search():
        root = await decoder.root(prompt, budget=budget)
        try:
            return await made(SearchRun(root, **limits))
        finally:
            root.release()
            assert decoder.stats().branches == 0

    return decoder.run(search())


def tokens_to(tree, node):
    tokens, upto = (), None
    while node >= 0:
        tokens, upto, node = tree[node].tokens[:upto] + tokens, tree[node].at, tree[node].parent
    return tokens


@pytest.mark.parametrize("then", ["step", "fork", "extend", "truncate", "fork while it runs"])
def test_the_tokens_of_a_cancelled_step_are_recorded_once(decoder, then):
    async def cut_off(run):
        (branch,) = run.fork(run.root)
        step = asyncio.ensure_future(run.step([branch]))
        while branch.length < run.root.length + 3 and not step.done():
            await asyncio.sleep(0)
        if then == "fork while it runs":
            run.end(run.fork(branch)[0])
            await step
        else:
            step.cancel()
            await asyncio.wait([step])
        assert branch.length == run.root.length + (6 if then == "fork while it runs" else 3)
        if then == "step":
            await run.step([branch])
        elif then == "fork":
            run.end(run.fork(branch)[0])
            await run.step([branch])
        elif then == "extend":
            await run.extend(branch, "wait")
        elif then == "truncate":
            run.truncate(branch, branch.length - 1)
            await run.step([branch])
        return await run.result()

    before = decoder.stats().generated_tokens
    result = searched(decoder, cut_off)
    for candidate in result.candidates:
        assert tokens_to(result.tree, candidate.node) == (*b"Q: ", *candidate.tokens)
    assert result.stats.generated_tokens == decoder.stats().generated_tokens - before
    sampled = [node for node in result.tree[1:] if not node.forced]
    assert sum(len(node.tokens) for node in sampled) == result.stats.generated_tokens
    assert "".join(node.text for node in result.tree if node.forced) == "wait" * (then == "extend")


def test_a_branch_that_is_not_held_is_refused():
    async def refused(run):
        a, b = run.fork(run.root, 2)
        run.end(a)
        for given in (a, run.root):
            with pytest.raises(ValueError, match="is not held by this search"):
                run.end(given)
            with pytest.raises(ValueError, match="is not held by this search"):
                run.prune([b, given])
        other = await run.root.decoder.root("another search's")
        with pytest.raises(ValueError, match="is not of this search"):
            run.fork(other)
        other.release()
        assert not b.released
        return await run.result()

    result = searched(scripted_decoder(script), refused)
    assert len(result.candidates) == 2


def test_a_branch_that_the_strategy_released_itself_holds_nothing_up():
    async def releases(run):
        first, *_ = run.fork(run.root, 3)
        first.release()
        raise KeyError("the strategy's own")

    decoder = scripted_decoder(script)
    with pytest.raises(KeyError, match="the strategy's own"):
        searched(decoder, releases)
    assert decoder.stats().branches == 0


@pytest.mark.parametrize("root", ["Q: ", None])
def test_what_is_no_root_is_refused(root):
    with pytest.raises(TypeError, match="expected a branch, as `await"):
        SearchRun(root)


@pytest.mark.parametrize("question", ["ask", "p_yes"])
def test_questions_that_fail_or_are_cancelled_leave_no_branch(question):
    """At once, not only when the search ends."""
    decoder = scripted_decoder(script, latency=lambda prefix, k: 50)

    async def asks(run):
        before = decoder.stats().branches
        if question == "p_yes":
            with pytest.raises(UnsupportedByEngineError):
                await run.p_yes("Is it?")
        else:
            task = asyncio.ensure_future(run.ask("What is it?", 3))
            while decoder.stats().branches < before + 3:
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        assert decoder.stats().branches == before
        return await run.result()

    searched(decoder, asks)


def test_a_question_beyond_the_budget_leaves_its_prompt_a_prompt():
    async def asks(run):
        await run.complete(run.fork(run.root)[0])
        assert await run.ask("And now?", 2) == ["", ""]
        return await run.result()

    result = searched(scripted_decoder(script), asks, budget=Budget(max_tokens=2))
    assert [node.status for node in result.tree] == ["prompt", "open", "prompt"]
    assert result.stopped == "the budget's max_tokens is used up"


def test_a_scorer_that_fails_before_it_is_awaited_ends_the_search_too():
    def failing(branches):
        raise OSError("no route to the verifier")

    decoder = scripted_decoder(script)
    result = searched(decoder, in_body(best_of_n, n=2, scorer=failing))
    assert result.stopped == "scorer failing raised OSError: no route to the verifier"
    assert len(result.candidates) == 2


def in_body(made, **options):
    async def body(run):
        return await made.body(run, **options)

    return body


def test_a_verifier_that_hangs_in_threads_does_not_hold_up_the_end():
    def hang(text):
        time.sleep(600)

    decoder = scripted_decoder(script)
    body = in_body(best_of_n, n=2, scorer=verifier(hang, threaded=True))
    result = searched(decoder, body, scorer_timeout=0.05)
    assert result.stopped == "scorer verifier gave no scores within 0.05 s"


def test_seconds_that_run_out_in_a_scorer_are_the_budgets():
    async def slow(branches):
        await asyncio.sleep(600)

    decoder = scripted_decoder(script)
    result = searched(decoder, in_body(best_of_n, n=2, scorer=slow), budget=Budget(max_seconds=0.05))
    assert result.stopped == "the budget's max_seconds is used up"


def test_another_model_without_a_chat_template_gets_the_bare_text(decoder):
    def render(messages):
        return "".join(f"<{message['role']}>{message['content']}" for message in messages)

    chatting = scripted_decoder(script, render=render)
    judge = scripted_decoder(script)

    async def asks(run):
        await run.ask("Same model?")
        await run.ask("Other model?", decoder=judge)
        return await run.result()

    result = searched(chatting, asks, prompt=[{"role": "user", "content": "Q"}])
    prompts = [node.text for node in result.tree if node.status == "prompt"]
    assert prompts == ["<user>Q", "<user>Same model?", "Other model?"]


def test_the_seed_of_a_question_is_the_one_that_is_given():
    async def seeds(root_seed, **given):
        decoder = scripted_decoder(script)
        root = await decoder.root("Q: ", SamplingParams(seed=root_seed))
        run = SearchRun(root)
        for _ in range(2):
            await run.ask("What is it?", max_tokens=3, **given)
        return [call.request.seed for call in decoder.complete.calls]

    async def search():
        return await seeds(1), await seeds(2), await seeds(1, seed=2), await seeds(2, seed=2)

    first, second, given, same = asyncio.run(search())
    assert given == same == second != first
    assert len(set(first)) == 2
