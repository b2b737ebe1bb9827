"""Branches on a tiny float32 model: however their tokens came about, they act like a fresh prompt of them."""

from __future__ import annotations

import random

import pytest
import torch
from primitives import PAGE, PROMPT, assert_like_fresh, fresh_logprobs, make
from transformers import PreTrainedModel
from tts_decode import SamplingParams, TreeDecoder, gather

pytestmark = pytest.mark.usefixtures("one_thread")
GREEDY = SamplingParams(temperature=0)


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
    assert decoder.stats().steps - before < 5 * 20  # batched, not one at a time


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


def test_prompts_that_share_all_or_a_part_come_in_one_forward_after_the_first(decoder: TreeDecoder) -> None:
    """Not one at a time: each result arrives two forwards after all requests, whatever their number."""

    async def search() -> None:
        prompts = [PROMPT] * 6 + [[*PROMPT[:37], i, i] for i in range(6)]
        before = decoder.stats()
        branches = await gather(decoder.root(prompt) for prompt in prompts)
        after = decoder.stats()
        assert after.steps - before.steps == 2
        assert after.forward_tokens - before.forward_tokens == len(PROMPT) + 5 * 1 + 6 * 2
        for branch in branches:
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


def test_int8_pages_serve_a_search_in_a_quarter_of_the_bytes_of_float32(model: PreTrainedModel) -> None:
    decoder = make(model, kv_dtype=torch.int8)

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
