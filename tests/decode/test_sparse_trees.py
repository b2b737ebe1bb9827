"""Branches of a tree read together: the tail after their forks, shared choices, trees taking turns."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from search_options import small_options
from sparse_decoding import CONFIG, PROMPT, SAMPLING, Record, crowd_model, make, outcome
from tiny_models import byte_tokenizer, tiny_model
from transformers import PreTrainedModel
from tts_decode import Branch, OutOfPagesError, SamplingParams, TreeDecoder, gather
from tts_decode.search import STRATEGIES

import tts_kernels
from tts_kernels import Selection

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny_model(dtype=request.param)


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
    """Branches of a tree continue together, whatever rows others want, with forced text and prompts too."""
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
