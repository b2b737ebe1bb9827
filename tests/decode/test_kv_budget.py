"""One KV budget for several decoders, and pinned prefixes."""

from __future__ import annotations

import asyncio

import pytest
from primitives import PROMPT, close, headless, make, pages, plain_logprobs, plain_states, table
from transformers import PreTrainedModel
from tts_decode import KVBudget, OutOfPagesError, SamplingParams, TreeDecoder, gather

pytestmark = pytest.mark.usefixtures("one_thread")


# -- one budget for several decoders (P13)


def test_decoders_on_one_budget_never_exceed_it_in_sum(model: PreTrainedModel) -> None:
    """A policy and a reader of the same pages: one grows into what the other gave back."""
    page_bytes = make(model).stats().page_bytes
    budget = KVBudget(20 * page_bytes + 5)
    policy = make(model, kv_bytes=budget)
    reader = make(headless("bare", model), kv_bytes=budget)
    greedy = SamplingParams(temperature=0)

    async def search() -> None:
        root = await policy.root(PROMPT, greedy)
        mirror = await reader.root(PROMPT)
        assert budget.resident == 8 * page_bytes
        children = root.fork(6)  # 60 tokens more: 4 full pages and the copy of the tail, 5 pages each
        tasks = [asyncio.create_task(child.step(max_step_tokens=70)) for child in children]
        for _ in range(300):
            await asyncio.sleep(0)
            assert policy.stats().resident_bytes + reader.stats().resident_bytes == budget.resident
            assert budget.resident <= budget.peak <= budget.total
        results = await asyncio.gather(*tasks, return_exceptions=True)
        errors = [error for error in results if isinstance(error, OutOfPagesError)]
        assert len(errors) == 6
        assert f"a KVBudget of {budget.total} bytes, of which 2 decoders hold" in str(errors[0])
        with pytest.raises(OutOfPagesError, match="needs 16 more KV pages"):
            await mirror.read([1] * 260, [])
        for child in children:
            child.release()
        await mirror.read([1] * 195, [])
        assert budget.resident == (4 + 16) * page_bytes == budget.peak
        mirror.truncate(50)
        close((await mirror.read([3], [0]))[0], plain_states(model, mirror.tokens)[-1])
        mirror.release()
        await root.step(max_step_tokens=200)
        root.release()

    asyncio.run(search())
    assert budget.resident == 0


def test_a_decoder_waits_for_pages_that_another_may_give_back(model: PreTrainedModel) -> None:
    """Both at their limit: the reader's request waits while the policy works, and gets what it frees."""
    page_bytes = make(model).stats().page_bytes
    budget = KVBudget(12 * page_bytes)
    policy, reader = make(model, kv_bytes=budget), make(headless("bare", model), kv_bytes=budget)

    async def search() -> None:
        root = await policy.root(PROMPT, SamplingParams(temperature=0))  # 4 pages
        other = await policy.root([7] * 40)  # 3 pages
        mirror = await reader.root(PROMPT)  # 4 pages: 1 is left
        read = asyncio.create_task(mirror.read([1] * 40, [39]))  # 2 or 3 more
        await root.step(max_step_tokens=6)
        assert not read.done()
        other.release()
        await root.step(max_step_tokens=6)
        close((await read)[0], plain_states(model, mirror.tokens)[-1])
        late = asyncio.create_task(mirror.read([1] * 60, []))
        with pytest.raises(OutOfPagesError, match="more KV pages"):  # nobody else is at work
            await late
        for branch in (root, mirror):
            branch.release()

    asyncio.run(search())
    assert budget.resident == 0


@pytest.mark.parametrize(("total", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError)])
def test_bad_budgets(model: PreTrainedModel, total: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="total: got "):
        KVBudget(total)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="kv_bytes: got 100, expected at least one page"):
        make(model, kv_bytes=KVBudget(100))


# -- pinned prefixes (P1)


def test_a_pinned_prefix_is_found_by_later_prompts(decoder: TreeDecoder, model: PreTrainedModel) -> None:
    async def search() -> None:
        root = await decoder.root(PROMPT)
        held = table(root)
        await root.step(max_step_tokens=30)
        pin = decoder.pin(root, at=50)
        root.release()
        assert (decoder.stats().branches, decoder.stats().pins, pages(decoder)) == (0, 1, 4)
        fed = decoder.stats().forward_tokens
        again = await decoder.root([*PROMPT[:50], *b"another question"])
        assert decoder.stats().forward_tokens - fed == 16
        assert table(again)[:3] == held[:3]
        assert pages(decoder) == 4 + 2  # the copy of the tail, and one more
        close(await again.next_logprobs(), plain_logprobs(model, again.tokens)[-1])
        again.release()
        with pin:
            assert pin.resident
        assert not pin.resident
        pin.release()

    decoder.run(search())


def test_pins_go_by_least_recent_use_before_pages_run_out(model: PreTrainedModel) -> None:
    page_bytes = make(model).stats().page_bytes
    decoder = make(model, kv_bytes=8 * page_bytes)
    texts = [[start] * 32 for start in (1, 2, 3)]  # two pages each

    async def search() -> None:
        pins = []
        for text in texts:
            branch = await decoder.root(text)
            pins.append(decoder.pin(branch))
            branch.release()
        (await decoder.root([*texts[0], 9])).release()  # the first is used again
        root = await decoder.root([7] * 48)
        assert [pin.resident for pin in pins] == [True, False, True]  # one page was missing
        await root.extend([8] * 32)
        assert [pin.resident for pin in pins] == [True, False, False]
        children = root.fork(3)
        with pytest.raises(OutOfPagesError, match=r"needs 1 more KV pages .* 0 of 8 are free"):
            await gather(branch.extend([8] * 16) for branch in (root, *children))
        assert [pin.resident for pin in pins] == [False, False, False]
        for branch in (root, *children):
            branch.release()

    decoder.run(search())
    assert (decoder.stats().pins, decoder.stats().resident_bytes) == (0, 0)


def test_a_prompt_that_goes_beyond_a_pin_uses_it(model: PreTrainedModel) -> None:
    """Also where what it found resident is a longer branch of somebody else."""
    page_bytes = make(model).stats().page_bytes
    decoder = make(model, kv_bytes=8 * page_bytes)

    async def search() -> None:
        pins = []
        for start in (1, 2):
            branch = await decoder.root([start] * 32)
            pins.append(decoder.pin(branch))
            branch.release()
        longer = await decoder.root([1] * 32 + [5] * 16)
        (await decoder.root([2] * 32 + [9])).release()
        (await decoder.root([1] * 32 + [5] * 16 + [6])).release()  # the first is used again
        longer.release()
        root = await decoder.root([7] * 80)
        assert [pin.resident for pin in pins] == [True, False]
        root.release()

    decoder.run(search())


def test_pins_of_another_decoder_on_the_budget_make_room(model: PreTrainedModel) -> None:
    page_bytes = make(model).stats().page_bytes
    budget = KVBudget(6 * page_bytes)
    first, second = make(model, kv_bytes=budget), make(model, kv_bytes=budget)

    async def search() -> None:
        branch = await first.root(PROMPT)
        pin = first.pin(branch)
        branch.release()
        other = await second.root([1] * 33)
        assert not pin.resident
        assert (first.stats().resident_bytes, budget.resident) == (0, 3 * page_bytes)
        other.release()

    asyncio.run(search())


def test_bad_pins(decoder: TreeDecoder, model: PreTrainedModel) -> None:
    async def search() -> None:
        root = await decoder.root(PROMPT)
        for at in (0, 54):
            with pytest.raises(ValueError, match=f"at: got {at}, expected 1 <= at <= 53"):
                decoder.pin(root, at=at)
        with pytest.raises(ValueError, match="of another decoder"):
            make(model).pin(root)
        with pytest.raises(ValueError, match="has no KV yet"):
            decoder.pin(root.fork(1, at=1)[0])
        with pytest.raises(TypeError, match="branch: got int, expected a Branch"):
            decoder.pin(root.id)  # type: ignore[arg-type]
        root.release()

    decoder.run(search())
