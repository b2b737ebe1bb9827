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
from tts_decode import Branch, SamplingParams, TreeDecoder, gather

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
