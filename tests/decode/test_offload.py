"""Pages beside the pool: the text of a pool that holds all, what is moved, and what is refused."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from file_sizes import files_of_at_most
from primitives import PAGE, PROMPT, make, pages, plain_logprobs, table
from transformers import PreTrainedModel
from tts_decode import (
    Branch,
    Compression,
    KVBudget,
    KVOffload,
    OutOfPagesError,
    SamplingParams,
    SparseConfig,
    TreeDecoder,
    gather,
)

pytestmark = pytest.mark.usefixtures("one_thread")

SAMPLING = SamplingParams(seed=3, max_tokens=400, max_step_tokens=23)
PROMPTS = [
    PROMPT,
    PROMPT[:40] + list(b"sleeps in the sun all day."),
    list(b"Another one, which shares nothing."),
]


def page_bytes(model: PreTrainedModel, **options: Any) -> int:
    return make(model, **options).stats().page_bytes


async def search(decoder: TreeDecoder) -> list[tuple[list[int], list[float]]]:
    """Beams of three prompts that grow apart from the same tree, some given up and some cut."""
    roots = [await decoder.root(prompt, SAMPLING) for prompt in PROMPTS]
    beams: list[Branch] = [child for root in roots for child in root.fork(4)]
    for depth in range(4):
        await gather(beam.step() for beam in beams)
        beams.sort(key=lambda beam: (beam.cum_logprob, beam.tokens))
        for lost in beams[8:]:
            lost.release()
        beams = beams[:8]
        if depth == 1:
            beams[0].truncate(beams[0].length - 9)
        beams += [child for beam in beams[:3] for child in beam.fork(2)]
    told = [(list(beam.tokens), list(beam.logprobs)) for beam in beams]
    for branch in [*roots, *beams]:
        branch.release()
    return told


@pytest.mark.parametrize("settings", ["float32", "bfloat16", "int8", "sparse", "compressed"])
def test_text_is_that_of_a_pool_that_holds_all(model: PreTrainedModel, settings: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "float32": {},
        "bfloat16": {},
        "int8": {"kv_dtype": torch.int8, "max_batch_tokens": 64},
        "sparse": {"sparse": SparseConfig(budget=2, recent=1)},
        "compressed": {"compress": Compression(budget_tokens=48, slack_tokens=16)},
    }[settings]
    if settings == "bfloat16":
        model = type(model)(model.config).bfloat16().eval()
    large = make(model, **options)
    expected = asyncio.run(search(large))
    stats = large.stats()
    small = make(
        model,
        **options
        | {
            "kv_bytes": stats.peak_bytes // 4,
            "kv_offload": KVOffload(stats.peak_bytes, tmp_path),
        },
    )
    assert asyncio.run(search(small)) == expected
    held = small.stats()
    assert held.peak_bytes <= stats.peak_bytes // 4
    assert held.moved_out_bytes >= held.moved_in_bytes > 0
    assert (held.branches, held.resident_bytes, held.offloaded_bytes) == (0, 0, 0)
    assert list(tmp_path.iterdir()) == []  # the file has no name


def test_what_is_needed_last_goes_first(model: PreTrainedModel) -> None:
    """A pool of 10 pages: the branch that was read the longest ago makes room, its last pages first."""
    size = page_bytes(model)
    decoder = make(model, kv_bytes=10 * size, kv_offload=KVOffload(64 * size))

    async def run() -> None:
        first = await decoder.root(list(range(64)), SAMPLING)  # 4 pages
        second = await decoder.root(list(range(100, 164)), SAMPLING)
        third = await decoder.root(list(range(32, 96)), SAMPLING)
        assert [page >= 10 for page in table(first)] == [False, False, True, True]
        assert max(*table(second), *table(third)) < 10
        assert decoder.stats().offloaded_bytes == decoder.stats().moved_out_bytes == 2 * size
        await first.step(max_step_tokens=2)  # comes back, and goes on: 5 pages, beside 4 of the last one
        assert max(*table(first), *table(third)) < 10
        assert [page >= 10 for page in table(second)] == [False, True, True, True]
        expected = plain_logprobs(model, list(second.tokens))[-1]
        torch.testing.assert_close(await second.next_logprobs(), expected, atol=2e-4, rtol=0)
        for branch in (first, second, third):
            branch.release()

    asyncio.run(run())


def test_a_shared_page_moves_once(model: PreTrainedModel) -> None:
    size = page_bytes(model)
    decoder = make(model, kv_bytes=8 * size, kv_offload=KVOffload(64 * size))

    async def run() -> None:
        root = await decoder.root(list(range(64)), SAMPLING)
        children = root.fork(5)
        other = await decoder.root(list(range(100, 228)), SAMPLING)  # the whole pool
        assert decoder.stats().moved_out_bytes == 4 * size
        assert pages(decoder) == 8
        assert {tuple(table(child)) for child in children} == {tuple(table(root))}
        assert decoder.resident_bytes([root, *children]) == 4 * size
        other.release()
        await gather(child.step(max_step_tokens=2) for child in children[:2])
        assert decoder.stats().moved_in_bytes == 4 * size
        assert table(children[0])[:4] == table(root)
        for branch in (root, *children):
            branch.release()

    asyncio.run(run())


def test_pins_and_prompts_find_what_is_offloaded(model: PreTrainedModel) -> None:
    size = page_bytes(model)
    decoder = make(model, kv_bytes=8 * size, kv_offload=KVOffload(4 * size))

    async def run() -> None:
        root = await decoder.root(list(range(64)), SAMPLING)
        pin = decoder.pin(root)
        root.release()
        other = await decoder.root(list(range(100, 228)), SAMPLING)
        assert pin.resident
        assert decoder.stats().offloaded_bytes == 4 * size
        other.release()
        again = await decoder.root([*range(64), 7], SAMPLING)
        assert again.cached_tokens == 64
        expected = plain_logprobs(model, list(again.tokens))[-1]
        torch.testing.assert_close(await again.next_logprobs(), expected, atol=2e-4, rtol=0)
        again.release()
        # Where no place is left a pin goes, as it does without them.
        one, two = [await decoder.root(list(range(b, b + 80)), SAMPLING) for b in (1, 120)]
        assert not pin.resident
        one.release()
        two.release()

    asyncio.run(run())


def test_out_of_pages_only_when_all_places_are_taken(model: PreTrainedModel) -> None:
    size = page_bytes(model)
    decoder = make(model, kv_bytes=8 * size, kv_offload=KVOffload(6 * size))

    async def run() -> None:
        held = [await decoder.root([n] * (4 * PAGE), SAMPLING) for n in (1, 2, 3)]
        assert (pages(decoder), decoder.stats().offloaded_bytes) == (8, 4 * size)
        with pytest.raises(
            OutOfPagesError, match=r"needs 4 more KV pages .* KVOffload.bytes, of whose 6 places 2 are free"
        ):
            await decoder.root([4] * (4 * PAGE), SAMPLING)
        assert decoder.stats().branches == 3
        # Two places are free for the five pages that this one needs: they are exchanged by twos.
        await held[0].step(max_step_tokens=2)
        assert (pages(decoder), decoder.stats().offloaded_bytes) == (8, 5 * size)
        for branch in held:
            expected = plain_logprobs(model, list(branch.tokens))[-1]
            torch.testing.assert_close(await branch.next_logprobs(), expected, atol=2e-4, rtol=0)
            branch.release()
        assert decoder.stats().offloaded_bytes == 0

    asyncio.run(run())


def test_served_branches_go_on_to_the_end_of_their_step(model: PreTrainedModel) -> None:
    """Six branches of which the pool holds three: pages move once a step, not once a token."""
    size = page_bytes(model)
    decoder = make(model, kv_bytes=12 * size, kv_offload=KVOffload(64 * size))

    async def run() -> None:
        held = [await decoder.root([n] * (2 * PAGE), SAMPLING) for n in range(6)]
        await gather(branch.step(max_step_tokens=2 * PAGE - 1) for branch in held)
        assert decoder.stats().moved_in_bytes <= 6 * 4 * size
        for branch in held:
            branch.release()

    asyncio.run(run())


def test_a_prompt_has_its_turn_beside_branches_that_decode(model: PreTrainedModel) -> None:
    """Single tokens go first, and six branches fill the pool: the prompt comes after a step or so of each."""
    size = page_bytes(model)
    decoder = make(model, kv_bytes=12 * size, kv_offload=KVOffload(99 * size), max_batch_tokens=32)

    async def run() -> None:
        held = [await decoder.root([n] * (2 * PAGE), SAMPLING) for n in range(6)]
        steps, arrived = 0, False

        async def decode(branch: Branch) -> None:
            nonlocal steps
            for _ in range(40):
                if not arrived:
                    await branch.step(max_step_tokens=4)
                    steps += 1
                    branch.truncate(min(branch.length, 3 * PAGE - 4))

        async def prompt() -> None:
            nonlocal arrived
            (await decoder.root([99] * (5 * PAGE), SAMPLING)).release()
            arrived = True

        await gather(*(decode(branch) for branch in held), prompt())
        assert steps <= 4 * len(held)
        for branch in held:
            branch.release()

    asyncio.run(run())


@pytest.mark.parametrize("share", ["branch", "siblings"])
def test_pages_move_by_steps_where_a_forward_takes_few_tokens(model: PreTrainedModel, share: Any) -> None:
    """The pool and a forward hold four of eight branches, which continue to the end of their step."""
    options = {"max_batch_tokens": 4}
    sparse = SparseConfig(budget=2, recent=1, share=share)
    size = page_bytes(model, sparse=sparse)
    decoder = make(model, kv_bytes=18 * size, kv_offload=KVOffload(99 * size), sparse=sparse, **options)

    async def run() -> None:
        roots = [await decoder.root([n] * (2 * PAGE), SAMPLING) for n in range(4)]
        held = [child for root in roots for child in root.fork(2)]
        await gather(branch.step(max_step_tokens=2 * PAGE - 1) for branch in held)
        assert decoder.stats().moved_in_bytes <= len(held) * 4 * size
        for branch in [*roots, *held]:
            branch.release()

    asyncio.run(run())


def test_a_pin_stays_while_places_are_free(model: PreTrainedModel) -> None:
    """Branches that wait for others to end need no page that a pin could give them."""
    size = page_bytes(model)
    decoder = make(model, kv_bytes=12 * size, kv_offload=KVOffload(64 * size))

    async def run() -> None:
        with decoder.pin(first := await decoder.root([9] * (2 * PAGE), SAMPLING)) as pin:
            first.release()
            held = [await decoder.root([n] * (2 * PAGE), SAMPLING) for n in range(6)]
            await gather(branch.step(max_step_tokens=PAGE) for branch in held)
            assert pin.resident
            for branch in held:
                branch.release()

    asyncio.run(run())


def test_a_decoder_that_serves_nobody_makes_room_on_a_budget(model: PreTrainedModel) -> None:
    size = page_bytes(model)
    budget = KVBudget(8 * size)
    idle, busy = (make(model, kv_bytes=budget, kv_offload=KVOffload(64 * size)) for _ in range(2))

    async def run() -> None:
        held = await idle.root([1] * (6 * PAGE), SAMPLING)
        other = await busy.root([2] * (7 * PAGE), SAMPLING)
        assert idle.stats().moved_out_bytes == 5 * size
        assert busy.stats().moved_out_bytes == 0
        await held.step(max_step_tokens=2)
        assert budget.resident <= budget.peak <= 8 * size
        expected = plain_logprobs(model, list(held.tokens))[-1]
        torch.testing.assert_close(await held.next_logprobs(), expected, atol=2e-4, rtol=0)
        held.release()
        other.release()

    asyncio.run(run())


# -- what is refused


def test_settings_that_cannot_be(model: PreTrainedModel, tmp_path: Path) -> None:
    size = page_bytes(model)
    with pytest.raises(ValueError, match=r"KVOffload.bytes: got 0, expected >= 1"):
        KVOffload(0)
    with pytest.raises(TypeError, match=r"KVOffload.bytes: got 1.5"):
        KVOffload(1.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"KVOffload.folder: got 3"):
        KVOffload(1 << 20, 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=rf"KVOffload.bytes: got 7, expected at least one page of {size}"):
        make(model, kv_offload=KVOffload(7))
    with pytest.raises(ValueError, match=r"missing does not take a file of .* bytes: No such file"):
        make(model, kv_offload=KVOffload(1 << 20, tmp_path / "missing"))
    with pytest.raises(TypeError, match=r"kv_offload: got int, expected a KVOffload"):
        make(model, kv_offload=1 << 20)


def test_a_full_disk_is_told_before_anything_is_computed(model: PreTrainedModel, tmp_path: Path) -> None:
    with (
        files_of_at_most(1 << 20),
        pytest.raises(
            ValueError, match=r"does not take a file of \d+ bytes: File too large; lower KVOffload.bytes"
        ),
    ):
        make(model, kv_offload=KVOffload(1 << 21, tmp_path))
    assert list(tmp_path.iterdir()) == []
