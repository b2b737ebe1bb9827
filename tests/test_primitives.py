"""Primitives that strategies build on: what each computes, and which pages it touches."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Iterator
from contextlib import suppress

import pytest
import torch
import transformers as hf
from tiny_models import byte_tokenizer, tiny_model
from transformers import PreTrainedModel
from tts_decode import Branch, KVBudget, OutOfPages, SamplingParams, TreeDecoder, gather

from tts_kernels.cost import Work

pytestmark = pytest.mark.usefixtures("one_thread")
PAGE = 16
PROMPT = list(b"The quick brown fox jumps over the lazy dog and runs.")  # 53 tokens: 4 pages, 5 of the last


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model()


@pytest.fixture
def decoder(model: PreTrainedModel) -> Iterator[TreeDecoder]:
    """A decoder whose tree must be empty again at the end of the test."""
    decoder = make(model)
    yield decoder
    assert (decoder.stats().branches, decoder.stats().resident_bytes) == (0, 0)


def make(model: PreTrainedModel, **options: object) -> TreeDecoder:
    decoder = TreeDecoder(model, byte_tokenizer(), **({"kv_bytes": 1 << 24} | options))
    decoder.eos_token_ids = frozenset()  # a random model ends its texts at random
    return decoder


def pages(decoder: TreeDecoder) -> int:
    return decoder.stats().resident_bytes // decoder.stats().page_bytes


def table(branch: Branch) -> list[int]:
    tables, lengths = branch.decoder._tree.block_tables([branch.id])
    return tables[0, : -(-lengths[0] // PAGE)].tolist()


def plain_states(model: PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    """Last hidden states [T, hidden] of a forward over the whole text."""
    with torch.no_grad():
        return model.base_model(torch.tensor([tokens])).last_hidden_state[0]


def plain_logprobs(model: PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    """[T, vocab] of a forward over the whole text."""
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].log_softmax(-1)


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=2e-4, rtol=0)  # float32, other GEMM shapes


# -- hidden states (P10), models without LM head (P13)

HEADLESS = {
    "bare": hf.LlamaModel,
    "sequence class": hf.LlamaForSequenceClassification,
    "token class": hf.LlamaForTokenClassification,
}


def headless(kind: str, model: PreTrainedModel) -> PreTrainedModel:
    """The same weights without the LM head."""
    config = type(model.config).from_dict(model.config.to_dict())
    other = HEADLESS[kind](config).eval()
    other.base_model.load_state_dict(model.base_model.state_dict())
    return other


@pytest.mark.parametrize("kind", ["LM", *HEADLESS])
@pytest.mark.parametrize("chunk", [7, 512])
def test_read_gives_the_states_of_a_plain_forward(model: PreTrainedModel, kind: str, chunk: int) -> None:
    """Random forks, cuts and reads; each token is fed once, but for the last one of a cut."""
    decoder = make(model if kind == "LM" else headless(kind, model), max_batch_tokens=chunk)
    rng = random.Random(chunk)

    async def read(branch: Branch) -> None:
        tokens = [rng.randrange(256) for _ in range(rng.randint(1, 40))]
        rows = sorted(rng.sample(range(len(tokens)), rng.randint(0, len(tokens))))
        begin, fed = branch.length, decoder.stats().forward_tokens
        missing = branch.length - branch._kv_length
        states = await branch.read(tokens, rows)
        assert decoder.stats().forward_tokens - fed == missing + len(tokens)
        assert missing <= 1
        assert branch.tokens[begin:] == tokens
        close(states, plain_states(model, branch.tokens)[[begin + row for row in rows]])
        assert all(map(math.isnan, branch.logprobs[begin - branch.prompt_length :]))

    async def search() -> None:
        branches = [await decoder.root(PROMPT)]
        for _ in range(12):
            branch = rng.choice(branches)
            at = rng.choice([branch.length, rng.randint(1, branch.length)])
            branches += branch.fork(2, at=at)
            branch.truncate(rng.randint(1, branch.length))
            await read(rng.choice(branches))
        for branch in branches:
            branch.release()

    decoder.run(search())
    assert decoder.stats().resident_bytes == 0
    if kind != "LM":
        assert decoder.stats().cost.logits == Work()


def test_read_makes_no_logits_and_takes_only_the_pages_of_its_tokens(
    decoder: TreeDecoder, model: PreTrainedModel
) -> None:
    async def search() -> None:
        root = await decoder.root(PROMPT)
        before, held = decoder.stats(), table(root)
        (child,) = root.fork()
        await child.read([7] * 30, [29])
        after = decoder.stats()
        assert after.cost.logits == before.cost.logits
        assert after.forward_tokens - before.forward_tokens == 30
        assert table(child)[:3] == held[:3]
        assert pages(decoder) == 4 + 3  # 83 tokens: the copy of the tail and two more
        assert table(root) == held
        await child.read([8] * 5, [])
        assert decoder.stats().forward_tokens - after.forward_tokens == 5
        await child.step(max_step_tokens=1)  # feeds the last token read again, for its logits
        assert decoder.stats().forward_tokens - after.forward_tokens == 6
        expected = plain_logprobs(model, child.tokens)[-2, child.tokens[-1]]
        close(torch.tensor(child.logprobs[-1]), expected)
        root.release()
        child.release()

    decoder.run(search())


@pytest.mark.parametrize("then", ["fork", "next_logprobs", "extend", "step", "truncate"])
def test_a_branch_goes_on_after_a_read(decoder: TreeDecoder, model: PreTrainedModel, then: str) -> None:
    async def search() -> None:
        branch = await decoder.root(PROMPT, SamplingParams(seed=5))
        await branch.read(b"some text".decode(), [])
        other = await decoder.root(branch.tokens, SamplingParams(seed=5))
        if then == "fork":
            child = branch.fork()[0]
            branch.release()
            branch = child
        elif then == "extend":
            close(await branch.extend("more"), await other.extend("more"))
        elif then == "step":
            await gather(b.step(max_step_tokens=4) for b in (branch, other))
            assert branch.tokens == other.tokens
        elif then == "truncate":
            branch.truncate(branch.length - 3)
        close(await branch.next_logprobs(), plain_logprobs(model, branch.tokens)[-1])
        branch.release()
        other.release()

    decoder.run(search())


def test_reads_and_steps_share_one_forward(decoder: TreeDecoder, model: PreTrainedModel) -> None:
    async def search() -> None:
        root = await decoder.root(PROMPT)
        reader, stepper = root.fork(2)
        await stepper.step(max_step_tokens=1)
        before = decoder.stats().steps
        states, _ = await gather(reader.read([9, 8, 7], [0, 2]), stepper.step(max_step_tokens=1))
        assert decoder.stats().steps - before == 1
        expected = plain_states(model, reader.tokens)
        close(states, expected[[len(PROMPT), len(PROMPT) + 2]])
        expected = plain_logprobs(model, stepper.tokens)
        close(torch.tensor(stepper.logprobs[1]), expected[-2, stepper.tokens[-1]])
        for branch in (root, reader, stepper):
            branch.release()

    decoder.run(search())


@pytest.mark.parametrize("kind", ["LM", "bare"])
def test_a_cancelled_read_changes_nothing(model: PreTrainedModel, kind: str) -> None:
    decoder = make(model if kind == "LM" else headless(kind, model), max_batch_tokens=16)

    async def cancelled_after(cycles: int) -> bool:
        root = await decoder.root(PROMPT)
        (branch,) = root.fork()
        await branch.read([1, 2], [])
        tokens, logprobs, resident = list(branch.tokens), len(branch.logprobs), pages(decoder)
        task = asyncio.create_task(branch.read([5] * 40, [39]))
        for _ in range(cycles):
            await asyncio.sleep(0)
        done = task.done()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        if not done and branch.tokens == tokens:
            assert (len(branch.logprobs), pages(decoder)) == (logprobs, resident)
        states = await branch.read([3], [0])
        close(states[0], plain_states(model, branch.tokens)[-1])
        root.release()
        branch.release()
        return done

    cycles = 0
    while not decoder.run(cancelled_after(cycles)):
        cycles += 1
    assert cycles > 6
    assert decoder.stats().resident_bytes == 0


def test_roots_without_logits_feed_only_what_is_not_resident(model: PreTrainedModel) -> None:
    decoder = make(headless("bare", model))

    async def search() -> None:
        root = await decoder.root(PROMPT)
        assert decoder.stats().forward_tokens == len(PROMPT)
        twin = await decoder.root(PROMPT)
        longer = await decoder.root([*PROMPT, 1, 2])
        assert decoder.stats().forward_tokens == len(PROMPT) + 2
        close((await longer.read([4], [0]))[0], plain_states(model, [*PROMPT, 1, 2, 4])[-1])
        for call in (twin.step, lambda: twin.extend([1]), twin.next_logprobs):
            with pytest.raises(TypeError, match="LlamaModel has no language-model head"):
                await call()
        for branch in (root, twin, longer):
            branch.release()

    decoder.run(search())


@pytest.mark.parametrize("rows", [[3], [1, 0], [0, 0], [-1]])
def test_read_refuses_bad_rows(decoder: TreeDecoder, rows: list[int]) -> None:
    async def search() -> None:
        root = await decoder.root(PROMPT)
        with pytest.raises(ValueError, match=r"rows must ascend and lie in 0\.\.2, as tokens has 3"):
            await root.read([1, 2, 3], rows)
        with pytest.raises(ValueError, match="exceed the model's 512 positions"):
            await root.read([1] * 500, [0])
        assert root.tokens == PROMPT
        assert (await root.read([], [])).shape == (0, 64)
        root.release()

    decoder.run(search())


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
        errors = [error for error in results if isinstance(error, OutOfPages)]
        assert len(errors) == 6
        assert f"a KVBudget of {budget.total} bytes, of which 2 decoders hold" in str(errors[0])
        with pytest.raises(OutOfPages, match="needs 16 more KV pages"):
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


@pytest.mark.parametrize(("total", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError)])
def test_bad_budgets(model: PreTrainedModel, total: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="total must be"):
        KVBudget(total)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="kv_bytes must hold one page"):
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
        with pytest.raises(OutOfPages, match=r"needs 1 more KV pages .* 0 of 8 are free"):
            await gather(branch.extend([8] * 16) for branch in (root, *children))
        assert [pin.resident for pin in pins] == [False, False, False]
        for branch in (root, *children):
            branch.release()

    decoder.run(search())
    assert (decoder.stats().pins, decoder.stats().resident_bytes) == (0, 0)


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
            with pytest.raises(ValueError, match=r"at must lie in 1\.\.53"):
                decoder.pin(root, at=at)
        with pytest.raises(ValueError, match="belongs to another decoder"):
            make(model).pin(root)
        with pytest.raises(ValueError, match="has no KV yet"):
            decoder.pin(root.fork(1, at=1)[0])
        with pytest.raises(TypeError, match="branch must be a Branch, got int"):
            decoder.pin(root.id)  # type: ignore[arg-type]
        root.release()

    decoder.run(search())
