"""Steps on a tiny float32 model: what ends one, what it tells, and what a cut leaves of it."""

from __future__ import annotations

import pytest
import torch
from primitives import PROMPT, assert_like_fresh, make
from tiny_models import EOS, tiny_model
from transformers import PreTrainedModel
from tts_decode import Branch, Budget, SamplingParams, Step, TreeDecoder, gather

pytestmark = pytest.mark.usefixtures("one_thread")
GREEDY = SamplingParams(temperature=0)


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
    decoder = make(model)

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


def test_text_leaves_special_tokens_out(decoder: TreeDecoder) -> None:
    async def search() -> None:
        root = await decoder.root(PROMPT)
        await root.extend([*b"done", EOS])
        assert root.text == "done"
        root.release()

    decoder.run(search())
