"""What sparse attention reads follows from a branch's history, whoever else lives, waits or runs: bitwise."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from search_options import small_options
from tiny_models import EOS, byte_tokenizer, tiny_model
from transformers import PreTrainedModel
from tts_decode import Branch, BranchState, OutOfPagesError, SamplingParams, SparseConfig, TreeDecoder, gather
from tts_decode.rewards import self_evaluation
from tts_decode.search import STRATEGIES

import tts_kernels
from tts_kernels import Selection

pytestmark = pytest.mark.usefixtures("one_thread")
PAGE = 16
PROMPT = list(b"The quick brown fox jumps over the lazy dog. " * 8)[:330]  # ends within its 21st page
SAMPLING = SamplingParams(temperature=0.8, max_step_tokens=24, suppress_token_ids=(EOS,))
CONFIG = SparseConfig(budget=6, recent=1, dense_layers=0, min_pages=1)
Record = list[Any]
crowd_model = cache(tiny_model)


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny_model(dtype=request.param)


def make(model: PreTrainedModel, config: SparseConfig | None = CONFIG, **options: Any) -> TreeDecoder:
    decoder = TreeDecoder(model, byte_tokenizer(), kv_bytes=1 << 24, sparse=config, **options)
    assert (
        decoder.runtime.engine.packed is not None
    )  # the packed path, whose products do not depend on the batch
    return decoder


async def outcome(branch: Branch) -> Record:
    return [branch.tokens, branch.logprobs, branch.entropies, (await branch.next_logprobs()).tolist()]


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


@settings(max_examples=8, deadline=None)
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


def tails_read(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """First page of the tail of each query, of each forward, as the first layer was told."""
    told: list[list[int]] = []
    real = tts_kernels.select_pages

    def listen(*args: Any, tail_begin: torch.Tensor | None, **kwargs: Any) -> Selection:
        assert tail_begin is not None
        told.append(tail_begin.tolist())
        return real(*args, tail_begin=tail_begin, **kwargs)

    monkeypatch.setattr("tts_decode.model.sparse.select_pages", listen)
    return told


NONE = 2**31 - 1


def test_the_tail_begins_at_the_last_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page in which the fork lies counts, of parent and children; other calls leave it."""
    told = tails_read(monkeypatch)
    decoder = make(tiny_model())

    async def tail(branch: Branch) -> int:
        told.clear()
        await branch.extend([5])
        await branch.next_logprobs()
        return told[-1][0]

    async def check() -> None:
        root = await decoder.root(PROMPT)
        assert await tail(root) == NONE
        told.clear()
        await root.read([9], [0])
        assert told == []  # what is read is forced text, one token too
        root.truncate(331)
        one, two = root.fork(2)  # at 331
        assert [await tail(b) for b in (root, one, two)] == [20] * 3
        await one.extend(PROMPT[:30])
        (early,) = one.fork(1, at=100)
        assert [await tail(b) for b in (one, early)] == [20, 6]  # its own last fork lies behind
        (late,) = one.fork(1, at=355)
        assert [await tail(b) for b in (one, late, two)] == [22, 22, 20]
        late.truncate(200)
        late.truncate(190)
        assert [await tail(b) for b in (late, one)] == [11, 22]
        two.truncate(two.length - 1)
        assert await tail(two) == 20
        decoder.pin(two)
        assert await tail(two.copy()) == 20
        assert await tail(two.copy(at=120)) == 7
        await two.logprobs_of([9])
        assert await tail(two) == 20
        again = await decoder.root(PROMPT)
        assert await tail(again) == NONE  # the prompt was resident
        kept = [await decoder.restore(b.snapshot()) for b in (late, again)]
        assert [await tail(b) for b in kept] == [11, NONE]
        (short,) = one.fork(1, at=one.length - 1)
        told.clear()
        await short.next_logprobs()  # feeds its last token, which lies before that fork
        assert [rows for rows in told if rows] == [[22]] * 3

    decoder.run(check())


def test_forced_text_has_no_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    told = tails_read(monkeypatch)
    decoder = make(tiny_model(), replace(CONFIG, budget=3, dense_layers=2, prompts=True))

    async def check() -> None:
        root = await decoder.root(PROMPT)
        (child,) = root.fork(1)
        await child.extend([1, 2, 3])
        await child.extend([4])
        await child.next_logprobs()

    decoder.run(check())
    assert told == [[NONE] * 330, [NONE] * 3, [20]]


@pytest.mark.parametrize("share", ["siblings", "tree"])
def test_a_tree_chooses_for_itself(model: PreTrainedModel, share: Any) -> None:
    """Beside others of the same prompt, whose pages it shares, a tree draws what it draws alone."""
    config = replace(CONFIG, share=share)

    async def tree(decoder: TreeDecoder, seed: int, sizes: Sequence[int]) -> Record:
        root = await decoder.root(PROMPT, SAMPLING)
        branches = root.fork(2, seeds=[seed, seed + 1])
        await gather(b.step(max_step_tokens=20) for b in branches)
        leaves = [leaf for b, n in zip(branches, sizes, strict=True) for leaf in b.fork(n)]
        await gather(b.step(max_step_tokens=20) for b in leaves)
        return [await outcome(b) for b in leaves]

    async def crowd(decoder: TreeDecoder) -> Record:
        return (await gather(tree(decoder, seed, (2, 3)) for seed in (9, 5, 13)))[1]

    single, many = make(model, config), make(model, config)
    expected = single.run(tree(single, 5, (2, 3)))
    assert many.run(crowd(many)) == expected


@pytest.mark.parametrize(("share", "rows"), [("siblings", 8), ("tree", 5), ("tree", 3)])
def test_trees_that_do_not_fit_into_a_forward_take_turns(share: Any, rows: int) -> None:
    """Branches of a tree go on together, whatever rows others want, with forced text and prompts too."""
    model, config = crowd_model(), replace(CONFIG, share=share)

    async def tree(decoder: TreeDecoder, seed: int) -> Record:
        root = await decoder.root(PROMPT[:150], SAMPLING)
        one, two, three = root.fork(3, seeds=[seed, seed + 1, seed + 2])

        async def forced(branch: Branch) -> None:
            await branch.step(max_step_tokens=3)
            await branch.extend(PROMPT[: 2 * rows])
            await branch.step(max_step_tokens=9)

        await gather(forced(one), two.step(max_step_tokens=20), three.step(max_step_tokens=12))
        await gather(b.step(max_step_tokens=5) for b in (one, three))
        return [await outcome(b) for b in (one, two, three)]

    async def crowd(decoder: TreeDecoder) -> Record:
        prompts = [decoder.root([i] * 70) for i in range(3)]
        return (await gather([*prompts, *(tree(decoder, seed) for seed in (9, 5, 13))]))[4]

    single, many = (make(model, config, max_batch_tokens=rows) for _ in range(2))
    assert many.run(crowd(many)) == single.run(tree(single, 5))


@pytest.mark.parametrize("share", ["branch", "tree"])
def test_a_tree_out_of_pages_does_not_keep_others_waiting(share: Any) -> None:
    """Nor does the decoder wait for pages that nobody frees."""
    page_bytes = 24_576  # 3 layers, 2 KV heads of 32, K and V, 16 tokens, float32
    decoder = TreeDecoder(
        crowd_model(),
        byte_tokenizer(),
        kv_bytes=14 * page_bytes,
        sparse=replace(CONFIG, share=share, budget=2),
        max_batch_tokens=3,
    )

    async def tree(first: int) -> int:
        root = await decoder.root([first] * 40, SAMPLING)
        branches = root.fork(3)
        root.release()
        try:
            for _ in range(8):
                await gather(b.step(max_step_tokens=16) for b in branches)
            return branches[0].length
        finally:
            for b in branches:
                b.release()

    async def both() -> list[int | BaseException]:
        return await asyncio.wait_for(asyncio.gather(tree(1), tree(2), return_exceptions=True), 60)

    lengths = decoder.run(both())
    assert decoder.stats().resident_bytes == 0
    assert all(isinstance(length, (int, OutOfPagesError)) for length in lengths)


@pytest.mark.parametrize(
    ("share", "name"),
    [("branch", "mcts"), ("branch", "particle_gibbs"), ("siblings", "beam_search"), ("tree", "mcts")],
)
def test_a_search_finds_the_same_beside_others(share: Any, name: str) -> None:
    """Others of the same prompt too. One that keeps hidden states is among them where branches choose alone:
    it has the last tokens of all steps fed in other forwards."""
    sampling = SamplingParams(temperature=0.8, max_tokens=30, max_step_tokens=10)

    async def search(decoder: TreeDecoder, name: str, prompt: list[int]) -> Record:
        root = await decoder.root(prompt, sampling)
        result = await STRATEGIES[name](root, **small_options(name))
        root.release()
        return [(candidate.text, candidate.logprob) for candidate in result.candidates]

    async def crowd(decoder: TreeDecoder) -> Record:
        others = [("best_of_n", PROMPT), ("st_bon" if share == "branch" else "beam_search", PROMPT[:240])]
        return (await gather(search(decoder, *one) for one in [*others, (name, PROMPT)]))[-1]

    config, model = replace(CONFIG, share=share), crowd_model()
    single, many = make(model, config), make(model, config, max_batch_tokens=64)
    assert many.run(crowd(many)) == single.run(search(single, name, PROMPT))


@pytest.mark.parametrize(
    ("share", "groups"),
    [("branch", [0, 1, 2, 3, 4, 5, 6]), ("siblings", [0, 1, 1, 2, 2, 3, 4]), ("tree", [0, 0, 0, 0, 0, 0, 1])],
)
def test_who_chooses_together(monkeypatch: pytest.MonkeyPatch, share: Any, groups: list[int]) -> None:
    """Leaves of a fork, again where it is forked again, and all of a root: by the tree."""
    told: list[Any] = []
    real = tts_kernels.select_pages

    def listen(*args: Any, groups: torch.Tensor | None, **kwargs: Any) -> Selection:
        told.append(groups)
        return real(*args, groups=groups, **kwargs)

    monkeypatch.setattr("tts_decode.model.sparse.select_pages", listen)
    decoder = make(tiny_model(), replace(CONFIG, dense_layers=2, share=share))

    async def check() -> None:
        root = await decoder.root(PROMPT)
        first = root.fork(1)[0]
        second = root.fork(1)[0]  # at the same place: siblings
        await first.extend([1, 2])
        third, fourth = first.fork(2)
        (early,) = first.fork(1, at=40)
        stranger = await decoder.root(PROMPT)
        branches = [early, root, second, third, fourth, fourth.fork(1, at=9)[0], stranger]
        first.release()
        await gather(b.extend([8]) for b in branches)
        told.clear()
        await gather(b.next_logprobs() for b in branches)

    decoder.run(check())
    if share == "branch":
        assert told == [None]
        return
    numbers = told[0].tolist()
    assert [numbers.index(n) for n in numbers] == [groups.index(n) for n in groups]
