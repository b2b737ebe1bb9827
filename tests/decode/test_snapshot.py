"""Branches that are saved, restored and replayed."""

from __future__ import annotations

import asyncio
import json

import pytest
import torch
from primitives import PROMPT, close, make, pages, table
from transformers import PreTrainedModel
from tts_decode import Branch, BranchState, Budget, SamplingParams, Step, TreeDecoder, gather

pytestmark = pytest.mark.usefixtures("one_thread")


def same_numbers(branch: Branch, other: Branch) -> None:
    assert branch.tokens == other.tokens
    for name in ("logprobs", "entropies"):
        close(torch.tensor(getattr(branch, name)), torch.tensor(getattr(other, name)))


async def grown(decoder: TreeDecoder) -> Branch:
    """A branch with steps, forced text, scores and a fork behind it."""
    params = SamplingParams(temperature=0.9, top_p=0.95, seed=11, max_step_tokens=7, stop=("e",))
    root = await decoder.root(bytes(PROMPT).decode(), params)
    (branch,) = root.fork()
    await branch.step()
    await branch.extend(" forced ")
    await branch.step()
    branch.scores += [0.25, 0.5]
    for child in (root, *branch.fork(2)):
        child.release()
    return branch


def test_a_restored_branch_draws_what_the_saved_one_draws(model: PreTrainedModel) -> None:
    decoder, other = make(model), make(model)

    async def search() -> None:
        branch = await grown(decoder)
        saved = json.dumps(branch.snapshot().to_dict(), allow_nan=False)
        state = BranchState.from_dict(json.loads(saved))
        assert state == branch.snapshot()
        again = await other.restore(state)
        assert again.snapshot() == state
        assert again.steps == branch.steps
        assert again.prompt == bytes(PROMPT).decode()
        for pair in ((branch, again), *zip(branch.fork(3), again.fork(3), strict=True)):
            await gather(b.step(max_step_tokens=12) for b in pair)
            same_numbers(*pair)

    asyncio.run(search())


def test_a_branch_is_restored_on_the_pages_that_are_there(decoder: TreeDecoder) -> None:
    async def search() -> None:
        branch = await grown(decoder)
        await branch.next_logprobs()  # its last token is in
        held, fed = table(branch), decoder.stats().forward_tokens
        again = await decoder.restore(branch.snapshot())
        assert decoder.stats().forward_tokens - fed == 1  # the last token, for its logits
        assert table(again)[:-1] == held[:-1]
        again.finish("answer")
        finished = await decoder.restore(again.snapshot())
        assert finished.finish_reason == "answer"
        for b in (branch, again, finished):
            b.release()

    decoder.run(search())


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"version": 7}, "got version 7, expected 2; it was written by another version"),
        ({"fork_positions": [5, 3]}, "fork_positions: expected ascending positions from 1 to"),
        ({"fork_positions": [0]}, "fork_positions: expected ascending positions from 1 to"),
        ({"fork_positions": None}, "fork_positions: got None, expected a list of integers"),
        ({"tokens": "abc"}, "tokens: got 'abc', expected a list of ids"),
        ({"tokens": [1, 2]}, "prompt_length: got 53, expected 1 to 2"),
        ({"logprobs": []}, "logprobs: got 0, expected"),
        ({"entropies": [0.5, "x"]}, "entropies: got"),
        ({"steps": [[53, 999, "eos"]]}, "steps: expected ascending positions from 53 to"),
        ({"steps": [[1, 2]]}, r"steps: got \[\[1, 2\]\], expected a list of \[begin, end, reason\]"),
        ({"sampling": {"heat": 1}}, "sampling: .*heat"),
        ({"sampling": {"top_p": 7}}, "sampling: top_p: got 7, expected"),
        ({"seed": None}, "seed: got None, expected an integer"),
    ],
)
def test_damaged_states_are_refused(model: PreTrainedModel, change: dict[str, object], match: str) -> None:
    decoder = make(model)
    data = decoder.run(grown(decoder)).snapshot().to_dict()
    with pytest.raises(ValueError, match=f"branch state: {match}"):
        BranchState.from_dict(data | change)
    for name in set(data) - {"version"}:
        with pytest.raises(ValueError, match=f"branch state: {name}: got None"):
            BranchState.from_dict({key: value for key, value in data.items() if key != name})


@pytest.mark.parametrize("tokens", [1, 2, 30])
def test_a_replayed_step_leaves_the_branch_as_it_was_after_it(model: PreTrainedModel, tokens: int) -> None:
    """The same pages and numbers, without a product with the vocabulary; the search continues alike."""
    decoder, other = make(model, max_batch_tokens=16), make(model, max_batch_tokens=16)
    budgets = Budget(max_tokens=100), Budget(max_tokens=100)
    params = SamplingParams(seed=5, max_tokens=tokens + 31, max_step_tokens=tokens)

    async def search() -> None:
        first = await decoder.root(PROMPT, params, budgets[0])
        second = await other.root(PROMPT, params, budgets[1])
        for _ in range(2):
            step = await first.step()
            logits = other.stats().cost.logits
            await second.replay(step)
            assert other.stats().cost.logits == logits
            assert second.kv_length == first.kv_length
            assert pages(other) == pages(decoder)
            assert (second.tokens, second.logprobs, second.steps) == (
                first.tokens,
                first.logprobs,
                first.steps,
            )
            assert second.finish_reason == first.finish_reason
            assert budgets[0].tokens_used == budgets[1].tokens_used
        await gather(b.step(max_step_tokens=6) for b in (first, second))
        same_numbers(first, second)

    asyncio.run(search())


def test_replays_end_branches_and_refuse_what_does_not_fit(decoder: TreeDecoder) -> None:
    async def search() -> None:
        root = await decoder.root(PROMPT)
        for step, match in (
            (Step("", (1, 2), (0.0,), (0.0, 0.0), "eos"), "got 2 tokens, 1 logprobs and 2 entropies"),
            (Step("", (999,), (0.0,), (0.0,), "eos"), "expected an id of the vocabulary"),
        ):
            with pytest.raises(ValueError, match=match):
                await root.replay(step)
        with pytest.raises(TypeError, match="step: got str, expected a Step"):
            await root.replay("text")  # type: ignore[arg-type]
        assert (root.tokens, root.steps) == (PROMPT, [])
        empty = root.fork()[0]
        await empty.replay(Step("", (), (), (), "budget"))
        assert (empty.finish_reason, empty.steps) == ("budget", [])
        await root.replay(Step("ab", (97, 98), (-1.0, -2.0), (1.0, 1.0), "eos"))
        assert (root.finish_reason, root.text) == ("eos", "ab")
        with pytest.raises(ValueError, match=r"is finished \(eos\): no step can follow"):
            await root.replay(Step("a", (97,), (0.0,), (0.0,), "eos"))
        root.release()
        empty.release()

    decoder.run(search())
