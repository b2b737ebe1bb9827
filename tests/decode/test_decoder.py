"""Branches on a tiny float32 model: however their tokens came about, they act like a fresh prompt of them."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import Any

import pytest
import torch
from tiny_models import EOS, byte_tokenizer, tiny_model
from transformers import PreTrainedModel
from tts_decode import Branch, Budget, SamplingParams, Step, TreeDecoder, gather

pytestmark = pytest.mark.usefixtures("one_thread")
PAGE = 16
PROMPT = list(b"The quick brown fox jumps over the lazy dog and runs.")
GREEDY = SamplingParams(temperature=0)


async def fresh_logprobs(branch: Branch) -> torch.Tensor:
    """The next-token distribution of a new prompt with the branch's tokens, computed on an empty tree."""
    other = TreeDecoder(branch.decoder.model, branch.decoder.tokenizer, kv_bytes=1 << 22)
    root = await other.root(branch.tokens)
    logprobs = await root.next_logprobs()
    root.release()
    return logprobs


async def assert_like_fresh(branch: Branch) -> None:
    # float32, other GEMM shapes
    torch.testing.assert_close(await branch.next_logprobs(), await fresh_logprobs(branch), atol=2e-4, rtol=0)


def test_forks_rollbacks_and_forced_text_equal_a_fresh_prompt(decoder: TreeDecoder) -> None:
    async def search() -> None:
        rng = random.Random(0)
        branches = [await decoder.root(PROMPT, SamplingParams(max_step_tokens=9))]
        for _ in range(40):
            branch = rng.choice(branches)
            action = rng.randrange(5)
            if action == 0:
                branches += branch.fork(rng.randint(1, 3), at=rng.randint(1, branch.length))
            elif action == 1:
                branch.truncate(rng.randint(1, branch.length))
            elif action == 2:
                await branch.extend([rng.randrange(256) for _ in range(rng.randint(1, 40))])
            elif action == 3:
                await gather(b.step() for b in rng.sample(branches, min(4, len(branches))))
            elif len(branches) > 3:
                branches.remove(branch)
                branch.release()
            check = rng.choice(branches)
            await assert_like_fresh(check)
            assert len(check.logprobs) == len(check.entropies) == check.length - check.prompt_length
        for branch in branches:
            await assert_like_fresh(branch)
            branch.release()

    decoder.run(search())


def test_forks_of_a_prompt_sample_without_another_forward(decoder: TreeDecoder) -> None:
    async def search() -> None:
        root = await decoder.root(PROMPT)
        before = decoder.stats()
        children = root.fork(20)
        steps = await gather(child.step(max_step_tokens=1) for child in children)
        after = decoder.stats()
        assert after.steps == before.steps
        assert after.resident_bytes == before.resident_bytes
        assert after.generated_tokens - before.generated_tokens == 20
        assert len({step.tokens for step in steps}) > 3
        for branch in (root, *children):
            branch.release()

    decoder.run(search())


def test_same_seed_same_text_alone_in_a_batch_and_after_replay(decoder: TreeDecoder) -> None:
    params = SamplingParams(temperature=0.9, top_p=0.95, max_tokens=30, seed=7)

    async def alone() -> list[int]:
        root = await decoder.root(PROMPT, params)
        await root.step()
        root.release()
        return root.tokens

    async def crowded() -> list[int]:
        root = await decoder.root(PROMPT, params)
        others = root.fork(5)
        stranger = await decoder.root([1, 2, 3], SamplingParams(temperature=1.5, seed=99))
        await gather(b.step() for b in (*others, root, stranger))
        tokens = list(root.tokens)
        root.truncate(len(PROMPT) + 11)
        await root.step()
        assert root.tokens == tokens
        again = root.fork(1, at=len(PROMPT), seeds=[root.seed])[0]
        await again.step()
        assert again.tokens == tokens
        for branch in (root, again, *others, stranger):
            branch.release()
        return tokens

    assert decoder.run(alone()) == decoder.run(crowded())


def test_children_have_seeds_of_their_own(decoder: TreeDecoder) -> None:
    async def search() -> None:
        root = await decoder.root(PROMPT)
        first, second = root.fork(3), root.fork(3)
        seeds = [child.seed for child in first + second]
        assert len({root.seed, *seeds}) == 7
        assert [child.seed for child in root.fork(2, seeds=[5, 6])] == [5, 6]
        twin = await decoder.root(PROMPT)
        assert [child.seed for child in twin.fork(3)] == seeds[:3]
        for branch in (root, twin, *first, *second):
            branch.release()

    decoder.run(search())


def test_a_steps_seed_holds_whatever_the_branchs_is(decoder: TreeDecoder) -> None:
    """Tokens are drawn by seed and position: whoever steps with seed s draws what a root of it does."""

    async def search() -> None:
        for own in (0, 7):
            params = SamplingParams(seed=own, max_step_tokens=12)
            for seed in (0, 7, 8):
                alone = await decoder.root(PROMPT, SamplingParams(seed=seed, max_step_tokens=12))
                root = await decoder.root(PROMPT, params)
                (child,) = root.fork()
                assert child.seed not in (0, 7, 8)
                default = root.fork(1, seeds=[child.seed])[0]
                branches = (alone, root, child, default)
                await gather(alone.step(), root.step(seed=seed), child.step(seed=seed), default.step())
                assert root.tokens == child.tokens == alone.tokens != default.tokens
                child.truncate(len(PROMPT))
                await child.step()  # for one step only
                assert child.tokens == default.tokens
                for branch in branches:
                    branch.release()

    decoder.run(search())


def test_several_problems_in_one_batch_change_nothing(decoder: TreeDecoder) -> None:
    async def problem(seed: int) -> list[list[int]]:
        rng = random.Random(seed)
        prompt = [rng.randrange(256) for _ in range(rng.randint(3, 70))]
        root = await decoder.root(prompt, SamplingParams(seed=seed, max_tokens=25, max_step_tokens=6))
        beams = root.fork(3)
        while not all(beam.finished for beam in beams):
            await gather(beam.step() for beam in beams)
        texts = [beam.tokens for beam in beams]
        for branch in (root, *beams):
            branch.release()
        return texts

    alone = [decoder.run(problem(seed)) for seed in range(5)]
    before = decoder.stats().steps
    assert decoder.run_all([problem(seed) for seed in range(5)]) == alone
    assert decoder.stats().steps - before < 5 * 20  # batched, not one after the other


def test_prompts_share_what_is_resident(decoder: TreeDecoder) -> None:
    async def search() -> None:
        before = decoder.stats().forward_tokens
        first, second = await gather(decoder.root(PROMPT), decoder.root(PROMPT))
        assert decoder.stats().forward_tokens - before == len(PROMPT) + 1  # the second feeds its last token
        stats = decoder.stats()
        assert stats.logical_tokens == 2 * len(PROMPT)
        third = await decoder.root([*PROMPT[:40], 1, 2, 3])
        assert decoder.stats().forward_tokens - before == len(PROMPT) + 4
        for branch in (first, second, third):
            await assert_like_fresh(branch)
            branch.release()

    decoder.run(search())


def test_resident_pages_are_unique_full_pages_and_a_tail_a_branch(decoder: TreeDecoder) -> None:
    async def search() -> None:
        root = await decoder.root(PROMPT, SamplingParams(max_step_tokens=21))
        children = root.fork(6)
        await gather(child.step() for child in children)
        shared = len(PROMPT) // PAGE
        own = sum(-(-child.kv_length // PAGE) - shared for child in children)
        root_tail = 1  # 53 tokens: three full pages and a tail
        stats = decoder.stats()
        assert stats.resident_bytes == (shared + root_tail + own) * stats.page_bytes
        for branch in (root, *children):
            branch.release()

    decoder.run(search())


# -- steps and what ends them


async def steps_of(branch: Branch) -> list[Step]:
    while not branch.finished:
        await branch.step()
    return branch.steps


def test_steps_partition_the_text(decoder: TreeDecoder) -> None:
    async def search() -> None:
        root = await decoder.root(PROMPT, SamplingParams(max_tokens=50, max_step_tokens=8, seed=3))
        steps = await steps_of(root)
        assert [len(step.tokens) for step in steps] == [8] * 6 + [2]
        assert [step.reason for step in steps] == ["max_step_tokens"] * 6 + ["max_tokens"]
        assert root.finish_reason == "max_tokens"
        assert [t for step in steps for t in step.tokens] == root.tokens[len(PROMPT) :]
        assert [x for step in steps for x in step.logprobs] == root.logprobs
        assert [x for step in steps for x in step.entropies] == root.entropies
        assert root.cum_logprob == pytest.approx(sum(root.logprobs))
        empty = await root.step()
        assert (empty.tokens, empty.reason) == ((), "max_tokens")
        assert len(root.steps) == 7
        root.release()

    decoder.run(search())


def test_logprobs_and_entropies_are_the_models(decoder: TreeDecoder, model: PreTrainedModel) -> None:
    async def search() -> Branch:
        root = await decoder.root(PROMPT, SamplingParams(temperature=0.7, top_k=20, max_tokens=20))
        await root.step()
        await root.extend("forced")
        root.release()
        return root

    branch = decoder.run(search())
    with torch.no_grad():
        logits = model(torch.tensor([branch.tokens])).logits[0].double().log_softmax(-1)[len(PROMPT) - 1 : -1]
    expected = logits.gather(-1, torch.tensor(branch.tokens[len(PROMPT) :])[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(branch.logprobs).double(), expected, atol=2e-4, rtol=0)
    entropies = torch.special.entr(logits.exp()).sum(-1)
    torch.testing.assert_close(torch.tensor(branch.entropies).double(), entropies, atol=2e-4, rtol=0)


def test_stop_strings_and_stop_tokens(decoder: TreeDecoder) -> None:
    async def search() -> None:
        free = await decoder.root(PROMPT, SamplingParams(seed=1, max_tokens=60))
        await free.step()
        text = free.tokens[len(PROMPT) :]
        stop_token = text[20]
        first = text.index(stop_token)
        root = await decoder.root(PROMPT, SamplingParams(seed=1, stop_token_ids=(stop_token,)))
        step = await root.step()
        assert (step.reason, list(step.tokens)) == ("stop_token", text[: first + 1])
        assert not root.finished
        ascii_byte = next(t for t in text if 32 <= t < 127)
        other = await decoder.root(PROMPT, SamplingParams(seed=1, stop=(chr(ascii_byte),)))
        step = await other.step()
        assert step.reason == "stop_string"
        assert list(step.tokens) == text[: text.index(ascii_byte) + 1]
        assert step.text.endswith(chr(ascii_byte))
        for branch in (free, root, other):
            branch.release()

    decoder.run(search())


def test_end_of_sequence_finishes_and_forced_text_reopens(decoder: TreeDecoder) -> None:
    async def search() -> None:
        root = await decoder.root(PROMPT, GREEDY)
        free = root.fork()[0]
        await free.step(max_step_tokens=30)
        eos = free.tokens[len(PROMPT) + 5]
        decoder.eos_token_ids = frozenset([eos])
        step = await root.step()
        assert step.reason == root.finish_reason == "eos"
        assert root.tokens[-1] == eos
        child = root.fork()[0]
        assert child.finish_reason == "eos"
        assert root.fork(1, at=root.length - 1)[0].finish_reason is None
        await child.extend("Wait")
        assert child.finish_reason is None
        await assert_like_fresh(child)
        root.truncate(root.length - 1)
        assert not root.finished
        for branch in (root, free, child):
            branch.release()

    decoder.run(search())


def test_the_models_last_position_ends_the_branch() -> None:
    model = tiny_model()
    model.config.max_position_embeddings = 70
    decoder = TreeDecoder(model, byte_tokenizer(), kv_bytes=1 << 22)
    decoder.eos_token_ids = frozenset()

    async def search() -> None:
        root = await decoder.root(PROMPT, GREEDY)
        step = await root.step()
        assert step.reason == root.finish_reason == "length"
        assert root.length == 70
        with pytest.raises(ValueError, match="exceed the model's 70 positions"):
            await root.extend([1])
        full = await decoder.root([3] * 70, GREEDY)
        assert (await full.step()).reason == "length"

    decoder.run(search())


def test_token_budget_is_never_exceeded(decoder: TreeDecoder) -> None:
    async def search() -> None:
        budget = Budget(max_tokens=50)
        root = await decoder.root(PROMPT, budget=budget)
        children = root.fork(7)
        steps = await gather(child.step() for child in children)
        assert budget.tokens_used == sum(len(step.tokens) for step in steps) == 50
        assert budget.exhausted
        assert budget.remaining_tokens == 0
        assert {step.reason for step in steps} == {"budget"}
        assert all(child.finish_reason == "budget" for child in children)
        late = root.fork()[0]
        assert (await late.step()).reason == "budget"
        for branch in (root, late, *children):
            branch.release()

    decoder.run(search())


def test_wall_budget_ends_the_step(decoder: TreeDecoder) -> None:
    async def search() -> None:
        budget = Budget(max_seconds=0.05)
        root = await decoder.root([1], SamplingParams(max_tokens=10**6, max_step_tokens=10**6), budget)
        step = await root.step()
        assert step.reason in ("budget", "length")  # 512 positions may take less
        assert budget.seconds_used > 0
        root.release()

    decoder.run(search())


def test_hidden_states_are_the_mean_over_the_steps_tokens(
    decoder: TreeDecoder, model: PreTrainedModel
) -> None:
    decoder.keep_hidden = True

    async def search() -> list[Branch]:
        root = await decoder.root(PROMPT, SamplingParams(max_tokens=20, max_step_tokens=7))
        branches = root.fork(2)
        await gather(steps_of(branch) for branch in branches)
        for branch in (root, *branches):
            branch.release()
        return branches

    for branch in decoder.run(search()):
        with torch.no_grad():
            states = model.model(torch.tensor([branch.tokens])).last_hidden_state[0]
        end = len(PROMPT)
        for step in branch.steps:
            begin, end = end, end + len(step.tokens)
            assert step.hidden is not None
            torch.testing.assert_close(step.hidden, states[begin:end].mean(0), atol=1e-4, rtol=0)


def test_steps_and_scores_follow_a_cut(decoder: TreeDecoder) -> None:
    async def search() -> None:
        root = await decoder.root(PROMPT, SamplingParams(max_step_tokens=5))
        for score in (0.1, 0.2, 0.3):
            await root.step()
            root.scores.append(score)
        child = root.fork(1, at=len(PROMPT) + 12)[0]
        assert child.scores == [0.1, 0.2]
        assert len(child.steps) == 2
        assert len(child.logprobs) == 12
        assert child.parent is root
        child.scores.append(0.9)
        assert root.scores == [0.1, 0.2, 0.3]
        root.truncate(len(PROMPT) + 5)
        assert root.scores == [0.1]
        assert root.text == root.steps[0].text
        before_prompt = root.fork(1, at=10)[0]
        assert before_prompt.tokens == PROMPT[:10]
        assert before_prompt.logprobs == []
        await assert_like_fresh(before_prompt)
        for branch in (root, child, before_prompt):
            branch.release()

    decoder.run(search())


def test_finish_by_the_strategy(decoder: TreeDecoder) -> None:
    async def search() -> None:
        root = await decoder.root(PROMPT, GREEDY)
        root.finish("answered")
        assert root.finished
        assert (await root.step()).reason == "answered"
        root.release()

    decoder.run(search())


def test_next_logprobs_and_single_forced_tokens(decoder: TreeDecoder) -> None:
    async def search() -> None:
        root = await decoder.root(PROMPT)
        logprobs = await root.next_logprobs()
        assert logprobs.shape == (260,)
        assert torch.equal(await root.next_logprobs([7, 5]), logprobs[[7, 5]])
        before = decoder.stats().steps
        assert (await root.extend([7])).tolist() == pytest.approx([logprobs[7].item()], abs=1e-5)
        assert decoder.stats().steps == before
        assert (await root.extend([])).shape == (0,)
        await assert_like_fresh(root)
        root.release()

    decoder.run(search())


# -- cancelling


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
    decoder = TreeDecoder(model, byte_tokenizer(), kv_bytes=1 << 24, max_batch_tokens=8)

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
    decoder = TreeDecoder(model, byte_tokenizer(), kv_bytes=1 << 24, max_batch_tokens=8)

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
    decoder = TreeDecoder(model, byte_tokenizer(), kv_bytes=1 << 24, max_batch_tokens=16)

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
        for _ in range(cycles):
            await asyncio.sleep(0)
        done = task.done()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
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

    cycles = 0
    while not decoder.run(cancelled_after(cycles)):
        cycles += 1
    assert cycles > 6
    assert decoder.stats().resident_bytes == 0


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


def test_dropped_branches_give_their_pages_back(decoder: TreeDecoder) -> None:
    async def search() -> None:
        root = await decoder.root(PROMPT)
        await root.fork()[0].step(max_step_tokens=3)
        del root

    decoder.run(search())
    assert decoder.stats().branches == 0


def test_chat_messages_and_text_prompts(decoder: TreeDecoder) -> None:
    decoder.tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
    )

    async def search() -> None:
        text = await decoder.root("hi there", GREEDY)
        assert text.tokens == list(b"hi there")
        chat = await decoder.root([{"role": "user", "content": "hi"}], GREEDY)
        assert chat.full_text == "[user]hi[assistant]"
        for branch in (text, chat):
            branch.release()

    decoder.run(search())


def test_text_leaves_special_tokens_out(decoder: TreeDecoder) -> None:
    async def search() -> None:
        root = await decoder.root(PROMPT)
        await root.extend([*b"done", EOS])
        assert root.text == "done"
        root.release()

    decoder.run(search())


def test_int8_pages_serve_a_search_in_a_quarter_of_the_bytes_of_float32(model: PreTrainedModel) -> None:
    decoder = TreeDecoder(model, byte_tokenizer(), kv_bytes=1 << 22, kv_dtype=torch.int8)
    decoder.eos_token_ids = frozenset()

    async def search() -> float:
        root = await decoder.root(PROMPT, SamplingParams(max_step_tokens=9))
        branches = [*root.fork(3), root]
        await gather(b.step() for b in branches)
        branches += branches[0].fork(2, at=len(PROMPT) + 3)
        await gather(b.step() for b in branches)
        error = 0.0
        for branch in branches:
            exact = await fresh_logprobs(branch)
            error = max(error, (await branch.next_logprobs() - exact).square().mean().sqrt().item())
            branch.release()
        return error

    # Keys and values are off by up to 1/254 of the largest of their page, and random weights make much of it;
    # the deviation of these log-probabilities themselves is 1.6.
    assert 0 < decoder.run(search()) < 0.2
    stats = decoder.stats()
    assert stats.branches == stats.resident_bytes == 0
    assert stats.page_bytes == 3 * 2 * (2 * 16 * 32 + 8)
