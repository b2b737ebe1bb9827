"""Primitives that strategies build on: what each computes, and which pages it touches."""

from __future__ import annotations

import asyncio
import random

import pytest
import torch
from primitives import PAGE, PROMPT, close, make, pages, plain_logprobs, plain_states, table
from tiny_models import EOS
from transformers import PreTrainedModel
from tts_decode import BranchReleasedError, Budget, SamplingParams, Step, TreeDecoder, gather

pytestmark = pytest.mark.usefixtures("one_thread")


# -- end tokens and forced text (P4, P5)


def test_an_end_token_is_intercepted_and_replaced(decoder: TreeDecoder, model: PreTrainedModel) -> None:
    """Budget forcing: other text replaces the end token, and the same pages continue."""

    async def search() -> None:
        root = await decoder.root(PROMPT, SamplingParams(temperature=0))
        free = root.fork()[0]
        await free.step(max_step_tokens=24)
        end = free.tokens[-1]
        assert end not in free.tokens[len(PROMPT) : -1]
        decoder.eos_token_ids = frozenset([end])
        branch = root.fork()[0]
        step = await branch.step()
        assert (step.reason, branch.tokens) == ("eos", free.tokens)
        held, fed = table(branch), decoder.stats().forward_tokens
        branch.truncate(branch.length - 1)
        assert table(branch) == held  # 76 tokens: the last page begins at 64
        forced = await branch.extend("Wait, ")
        assert decoder.stats().forward_tokens - fed == 1 + 6  # the last token is fed again, for its logits
        assert table(branch)[: len(held)] == held
        assert not branch.finished
        expected = plain_logprobs(model, branch.tokens)
        close(forced, expected[range(-7, -1), branch.tokens[-6:]])
        await branch.step(max_step_tokens=3)
        close(await branch.next_logprobs(), plain_logprobs(model, branch.tokens)[-1])
        for b in (root, free, branch):
            b.release()

    decoder.run(search())


def test_a_suppressed_end_token_is_never_drawn(decoder: TreeDecoder, model: PreTrainedModel) -> None:
    async def search() -> None:
        root = await decoder.root(PROMPT, SamplingParams(temperature=0))
        free, branch = root.fork(2)
        await free.step(max_step_tokens=10)
        end = free.tokens[-1]
        decoder.eos_token_ids = frozenset([end])
        await branch.step(max_step_tokens=40, suppress_token_ids=(end,))
        assert end not in branch.tokens[len(PROMPT) :]
        logprobs = plain_logprobs(model, branch.tokens)[len(PROMPT) - 1 : -1]
        close(torch.tensor(branch.logprobs), logprobs[range(40), branch.tokens[len(PROMPT) :]])
        logprobs[:, end] = -torch.inf
        assert branch.tokens[len(PROMPT) :] == logprobs.argmax(-1).tolist()
        for ids, text in (
            (range(260), "got all 260 tokens"),
            ((260,), r"got 260, expected ids of the vocabulary, 0\.\.259"),
        ):
            with pytest.raises(ValueError, match=text):
                await root.step(suppress_token_ids=tuple(ids))
        for b in (root, free, branch):
            b.release()

    decoder.run(search())


# -- the log-probabilities of an answer that is not kept (P7)


def test_logprobs_of_a_continuation_leave_nothing(decoder: TreeDecoder, model: PreTrainedModel) -> None:
    answer = list(b"The answer is 42, and that is that.")

    async def search() -> None:
        twin, branch = [await decoder.root(PROMPT, SamplingParams(seed=3)) for _ in range(2)]
        for b in (twin, branch):
            await b.step(max_step_tokens=9)
        before, held = decoder.stats(), table(branch)
        tokens, logprobs = list(branch.tokens), list(branch.logprobs)
        got = await branch.logprobs_of(answer)
        expected = plain_logprobs(model, branch.tokens + answer)
        close(got, expected[range(len(tokens) - 1, len(tokens) + len(answer) - 1), answer])
        after = decoder.stats()
        assert after.forward_tokens - before.forward_tokens == 1 + len(answer)
        assert after.peak_bytes - before.resident_bytes == 4 * after.page_bytes  # a copied tail, three more
        assert (after.resident_bytes, after.branches) == (before.resident_bytes, before.branches)
        assert (branch.tokens, branch.logprobs, table(branch)) == (tokens, logprobs, held)
        assert [b.seed for b in branch.fork(2)] == [b.seed for b in twin.fork(2)]
        task = asyncio.create_task(branch.logprobs_of(answer))
        for _ in range(4):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert decoder.stats().branches == before.branches
        twin.release()
        branch.release()

    decoder.run(search())


# -- prompts


def test_forks_know_what_the_root_was_given(decoder: TreeDecoder) -> None:
    messages = [{"role": "user", "content": "hi"}]

    async def search() -> None:
        with pytest.raises(ValueError, match="the tokenizer has no chat template; give text or token ids"):
            await decoder.root(messages)
        decoder.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}?"
        for prompt in ("some text", [1, 2, 3], messages):
            root = await decoder.root(prompt)
            (child,) = root.fork(1, at=2)
            assert child.prompt == root.prompt == prompt
            root.release()
            child.release()
        messages[0]["content"] = "changed"
        assert root.prompt == [{"role": "user", "content": "hi"}]

    decoder.run(search())


# -- forks, ends, budgets and accounting (P2, P6, P11, P12)


def test_a_fork_at_any_past_token_leaves_its_siblings_alone(
    decoder: TreeDecoder, model: PreTrainedModel
) -> None:
    async def search() -> None:
        root = await decoder.root(PROMPT, SamplingParams(seed=2))
        first, second = root.fork(2)
        await gather(b.step(max_step_tokens=40) for b in (first, second))
        for at in (1, PAGE, len(PROMPT), 64, 65, 80, first.length):
            before = [(table(b), list(b.tokens), list(b.logprobs)) for b in (root, first, second)]
            resident = pages(decoder)
            (child,) = first.fork(1, at=at)
            assert pages(decoder) == resident  # a fork takes none
            await child.extend([7] * 20)
            shared = (at - 1) // PAGE  # whole pages; the cut's last token is fed again, for its logits
            assert table(child)[:shared] == table(first)[:shared]
            assert pages(decoder) - resident == len(table(child)) - shared
            assert [(table(b), b.tokens, b.logprobs) for b in (root, first, second)] == before
            close(await child.next_logprobs(), plain_logprobs(model, child.tokens)[-1])
            child.release()
            assert pages(decoder) == resident
        for b in (root, first, second):
            close(await b.next_logprobs(), plain_logprobs(model, b.tokens)[-1])
            b.release()

    decoder.run(search())


def test_the_losers_of_a_race_give_their_pages_back_before_the_next_forward(decoder: TreeDecoder) -> None:
    """First-Finish: the first branch that ends wins, the others are cancelled in the middle of a step."""

    async def search() -> None:
        root = await decoder.root(PROMPT)
        children = root.fork(5)
        tasks = {
            asyncio.create_task(child.step(max_step_tokens=20 + 30 * i)): child
            for i, child in enumerate(children)
        }
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        winner = tasks[done.pop()]
        for task in pending:
            task.cancel()
            tasks[task].release()
        steps = decoder.stats().steps
        assert decoder.resident_bytes([root, winner]) == decoder.stats().resident_bytes
        await winner.step(max_step_tokens=1)
        assert decoder.stats().steps - steps <= 1
        assert decoder.resident_bytes([root, winner]) == decoder.stats().resident_bytes
        assert all(task.cancelled() for task in pending)
        root.release()
        winner.release()

    decoder.run(search())


@pytest.mark.parametrize(
    "limit",
    [{"max_tokens": 40}, {"max_cost": 1.0}, {"max_seconds": 1e-9}],
)
def test_a_budget_says_what_is_used_up_and_ends_the_steps(
    decoder: TreeDecoder, limit: dict[str, float]
) -> None:
    async def search() -> None:
        budget = Budget(**limit)  # type: ignore[arg-type]
        assert budget.spent is None
        root = await decoder.root(PROMPT, budget=budget)
        children = root.fork(3)
        steps = await gather(child.step(max_step_tokens=30) for child in children)
        assert {step.reason for step in steps} == {"budget"}
        assert (budget.spent, budget.exhausted) == (*limit, True)
        assert budget.tokens_used == sum(len(step.tokens) for step in steps)
        assert budget.cost_used > 0
        assert budget.seconds_used > 0
        held = decoder.stats()
        assert [await child.step() for child in children] == [Step("", (), (), (), "budget")] * 3
        assert decoder.stats() == held
        for branch in (root, *children):
            branch.release()

    decoder.run(search())


def test_resident_bytes_count_each_page_once(decoder: TreeDecoder, model: PreTrainedModel) -> None:
    async def search() -> None:
        rng = random.Random(0)
        branches = [await decoder.root(PROMPT), await decoder.root([1] * 20)]
        for _ in range(8):
            branches += rng.choice(branches).fork(2)
            await gather(b.extend([rng.randrange(256)] * rng.randint(1, 30)) for b in rng.sample(branches, 2))
        for count in (0, 1, 3, len(branches)):
            some = rng.sample(branches, count)
            distinct = {page for branch in some for page in table(branch)}
            assert decoder.resident_bytes(some) == len(distinct) * decoder.stats().page_bytes
        assert decoder.resident_bytes(branches) == decoder.stats().resident_bytes
        with pytest.raises(ValueError, match=r"branches: got branch .* of another decoder"):
            make(model).resident_bytes(branches)
        for branch in branches:
            branch.release()
        with pytest.raises(BranchReleasedError):
            decoder.resident_bytes(branches)

    decoder.run(search())


def test_a_step_keeps_its_hidden_states_whatever_other_searches_want(
    decoder: TreeDecoder, model: PreTrainedModel
) -> None:
    async def search() -> None:
        root = await decoder.root(PROMPT)
        with_states, without = root.fork(2)
        decoder.keep_hidden += 1
        first = asyncio.ensure_future(with_states.step(max_step_tokens=6, suppress_token_ids=(EOS,)))
        while with_states.length < root.length + 2:
            await asyncio.sleep(0)
        decoder.keep_hidden -= 1
        second = asyncio.ensure_future(without.step(max_step_tokens=6, suppress_token_ids=(EOS,)))
        while without.length < root.length + 2:
            await asyncio.sleep(0)
        decoder.keep_hidden += 1
        kept, none = await gather(first, second)
        decoder.keep_hidden -= 1
        assert none.hidden is None
        close(kept.hidden, plain_states(model, with_states.tokens)[root.length :].mean(0))
        for branch in (root, with_states, without):
            branch.release()

    decoder.run(search())


def test_problems_may_fail_alone(decoder: TreeDecoder) -> None:
    async def good(number: int) -> int:
        (await decoder.root(PROMPT)).release()
        return number

    async def bad() -> int:
        raise ValueError("this one")

    first, error, last = decoder.run_all([good(1), bad(), good(3)], return_exceptions=True)
    assert (first, str(error), last) == (1, "this one", 3)
    with pytest.raises(ValueError, match="this one"):
        decoder.run_all([good(1), bad(), good(3)])


def test_forced_tokens_list_what_was_most_probable_in_their_places(decoder, model):
    async def run():
        root = await decoder.root(PROMPT[:20])
        found = await root.extend_listing(PROMPT[20:40], 3)
        nothing = await root.extend_listing([], 3)
        again = await decoder.root(PROMPT[:30])  # of which all but the last token is resident
        cached = root.cached_tokens, again.cached_tokens
        root.release()
        again.release()
        return found, nothing, cached

    (logprobs, tops), nothing, cached = decoder.run(run())
    expected = plain_logprobs(model, PROMPT[:40])[19:39]
    assert logprobs == pytest.approx(
        expected.gather(1, torch.tensor(PROMPT[20:40])[:, None])[:, 0].tolist(), abs=2e-4
    )
    for row, top in zip(expected, tops, strict=True):
        values, ids = row.topk(3)
        assert [token for token, _ in top] == ids.tolist()
        assert [value for _, value in top] == pytest.approx(values.tolist(), abs=2e-4)
    assert nothing == ([], [])
    assert cached == (0, 29)
