"""Sparse attention's pages depend only on a branch's history, whatever other branches do: bitwise."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sparse_decoding import CONFIG, PAGE, PROMPT, SAMPLING, Record, crowd_model, make, outcome
from tiny_models import tiny_model
from transformers import PreTrainedModel
from tts_decode import Branch, BranchState, SparseConfig, TreeDecoder, gather
from tts_decode.rewards import self_evaluation

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny_model(dtype=request.param)


async def alone(decoder: TreeDecoder) -> tuple[Branch, Branch, Branch]:
    root = await decoder.root(PROMPT, SAMPLING)
    return root, *root.fork(2, seeds=[11, 12])


# Each scenario grows one branch of a fork by 48 tokens.


async def siblings_idle(decoder: TreeDecoder) -> Record:
    _, branch, _ = await alone(decoder)
    await branch.step()
    await branch.step()
    return await outcome(branch)


async def siblings_active(decoder: TreeDecoder) -> Record:
    root, branch, other = await alone(decoder)
    for _ in range(2):
        await gather(b.step() for b in (root, other, branch))
    return await outcome(branch)


async def siblings_released(decoder: TreeDecoder) -> Record:
    root, branch, other = await alone(decoder)
    root.release()
    other.release()
    await branch.step()
    await branch.step()
    return await outcome(branch)


async def siblings_released_half_way(decoder: TreeDecoder) -> Record:
    root, branch, other = await alone(decoder)
    await gather(b.step(max_step_tokens=17) for b in (root, other))
    grown = other.fork(3)
    await gather([branch.step(), root.step(max_step_tokens=7), *(b.step() for b in grown)])
    for b in (root, other, *grown):
        b.release()
    await branch.step()
    return await outcome(branch)


async def other_roots(decoder: TreeDecoder) -> Record:
    async def busy(prompt: list[int]) -> None:
        other = await decoder.root(prompt, SAMPLING)
        await gather(b.step(max_step_tokens=9) for b in other.fork(2))

    _, branch, _ = await alone(decoder)
    await gather([branch.step(), busy(PROMPT), busy(PROMPT[:300] + [1] * 99), busy([5] * 200)])
    await branch.step()
    return await outcome(branch)


async def prefix_resident(decoder: TreeDecoder) -> Record:
    """Resident before: the prompt in part, in whole, and with another text behind it."""
    for prompt in (PROMPT[:170], PROMPT, PROMPT + [3] * 50):
        await (await decoder.root(prompt, SAMPLING)).step(max_step_tokens=9)
    return await siblings_idle(decoder)


async def prefix_resident_as_generated_text(decoder: TreeDecoder) -> Record:
    """A branch draws the prompt's last part: its keys and values are not those of a prompt."""
    root = await decoder.root(PROMPT[:200], SAMPLING)
    for token in PROMPT[200:240]:
        await root.extend([token])
        await root.next_logprobs()
    with decoder.pin(root):
        root.release()
        return await siblings_idle(decoder)


async def scored_between(decoder: TreeDecoder) -> Record:
    """Questions about a branch leave no trace."""
    _, branch, _ = await alone(decoder)
    await branch.step()
    await branch.logprobs_of("some other text")
    await self_evaluation("?", yes=["y"], no=["n"])([branch])
    await branch.step()
    return await outcome(branch)


async def restored(decoder: TreeDecoder) -> Record:
    """Before anything was drawn: text that was drawn is read as a prompt's."""
    root, branch, other = await alone(decoder)
    state = BranchState.from_dict(branch.snapshot().to_dict())
    for b in (root, branch, other):
        b.release()
    branch = await decoder.restore(state)
    await branch.step()
    await branch.step()
    return await outcome(branch)


SCENARIOS: list[Callable[[TreeDecoder], Awaitable[Record]]] = [
    siblings_active,
    siblings_released,
    siblings_released_half_way,
    other_roots,
    prefix_resident,
    prefix_resident_as_generated_text,
    scored_between,
    restored,
]


@pytest.fixture(scope="module")
def expected(model: PreTrainedModel) -> tuple[SparseConfig, Record]:
    """Settings, and what a branch gives whose siblings wait."""
    config = CONFIG
    if model.dtype == torch.bfloat16:
        config = replace(CONFIG, summaries="minmax", top_p=0.95)
    decoder = make(model, config)
    return config, decoder.run(siblings_idle(decoder))


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda f: f.__name__)
def test_a_branch_reads_the_same_in_any_company(
    model: PreTrainedModel,
    expected: tuple[SparseConfig, Record],
    scenario: Callable[[TreeDecoder], Any],
) -> None:
    config, record = expected
    decoder = make(model, config)
    assert decoder.run(scenario(decoder)) == record


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_chunks_of_prompts_do_not_matter(model: PreTrainedModel, chunk: int) -> None:
    """Nor those of forced text, of which a chunk may be one token."""

    async def search(decoder: TreeDecoder) -> Record:
        branch = await decoder.root(PROMPT[:300], SAMPLING)
        (branch,) = branch.fork(1)
        await branch.step(max_step_tokens=3)
        await branch.extend(PROMPT[:13])
        await branch.step(max_step_tokens=3)
        return await outcome(branch)

    whole, cut = make(model), make(model, max_batch_tokens=chunk)
    assert cut.run(search(cut)) == whole.run(search(whole))


def test_when_a_token_is_fed_does_not_matter(model: PreTrainedModel) -> None:
    """A search that keeps hidden states has a step's last token fed at once, not with what follows: text or a
    fork. And rows that others take leave chunks of one."""

    async def search(decoder: TreeDecoder) -> Record:
        root = await decoder.root(PROMPT, SAMPLING)
        one, two = root.fork(2, seeds=[1, 2])
        await one.step(max_step_tokens=5)
        await gather([one.extend(PROMPT[:20]), two.extend(PROMPT[20:28])])
        await one.extend([7])
        await one.extend([8, 9])
        await one.step(max_step_tokens=10)
        assert one.length == 23 * PAGE
        (leaf,) = one.fork(1)
        await leaf.step(max_step_tokens=5)
        return await outcome(leaf)

    plain, crowded = make(model), make(model, max_batch_tokens=9)
    crowded.keep_hidden = 1
    assert crowded.run(search(crowded)) == plain.run(search(plain))


def test_a_replayed_step_leaves_the_keys_and_values_of_the_step(model: PreTrainedModel) -> None:
    async def search(decoder: TreeDecoder, replay: bool) -> Record:
        root = await decoder.root(PROMPT, SAMPLING)
        branch, again = root.fork(2, seeds=[11, 11])
        step = await branch.step()
        if replay:
            branch = again
            await branch.replay(step)
        await branch.step()
        return await outcome(branch)

    first, second = make(model), make(model)
    assert second.run(search(second, True)) == first.run(search(first, False))


@settings(max_examples=8)
@given(data=st.data())
def test_random_company(data: st.DataObject) -> None:
    """A branch's own calls are drawn once, and made alone and in two crowds that are drawn too."""
    model = crowd_model()
    calls = data.draw(
        st.lists(
            st.tuples(
                st.sampled_from(
                    ["step", "extend", "one", "truncate", "fork", "fork_at", "child", "question"]
                ),
                st.integers(1, 24),
            ),
            min_size=2,
            max_size=7,
        )
    )
    crowds = [
        data.draw(st.lists(st.integers(0, 4), min_size=len(calls), max_size=len(calls))) for _ in range(2)
    ]
    records = []
    for crowd in ([0] * len(calls), *crowds):
        decoder = make(model, max_batch_tokens=512 if crowd == crowds[0] else 24)
        records.append(decoder.run(_grow(decoder, calls, crowd)))
    assert records[1] == records[0]
    assert records[2] == records[0]


async def _grow(decoder: TreeDecoder, calls: Sequence[tuple[str, int]], crowd: Sequence[int]) -> Record:
    branch = await decoder.root(PROMPT[:150], SAMPLING)
    company: list[Branch] = []
    seeds = itertools.count()
    for (call, n), others in zip(calls, crowd, strict=True):
        if others == 1:  # siblings come and go
            for b in company:
                b.release()
            company = []
        elif others == 2:
            company.append(await decoder.root(branch.tokens[: 16 * n], SAMPLING))
        elif others == 3:
            company += [b.copy() for b in company]
        running = [b.step(max_step_tokens=n) for b in company] if others > 2 else []
        if call == "step":
            await gather([branch.step(max_step_tokens=n), *running])
        elif call in ("extend", "one"):
            await gather([branch.extend(PROMPT[:n] if call == "extend" else [n]), *running])
        elif call == "truncate":
            await gather(running)
            branch.truncate(max(1, branch.length - n))
        elif call in ("fork", "fork_at"):
            at = max(1, branch.length - n) if call == "fork_at" else None
            company += branch.fork(2, at=at, seeds=[next(seeds), next(seeds)])
            await gather(running)
        elif call == "child":
            parent, (branch,) = branch, branch.fork(1, seeds=[next(seeds)])
            company.append(parent)
            await gather(running)
        else:
            await gather([branch.logprobs_of(PROMPT[:n]), *running])
    await branch.step(max_step_tokens=4)
    return await outcome(branch)
