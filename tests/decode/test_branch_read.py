"""Hidden states of what is read, and embeddings in the place of tokens."""

from __future__ import annotations

import asyncio
import math
import random
from contextlib import suppress

import pytest
import torch
from primitives import HEADLESS, PROMPT, close, headless, make, pages, plain_logprobs, plain_states, table
from tiny_models import tiny_model
from transformers import PreTrainedModel
from tts_decode import Branch, SamplingParams, TreeDecoder, gather
from tts_decode.cost import Work

pytestmark = pytest.mark.usefixtures("one_thread")


# -- hidden states (P10), models without LM head (P13)


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
        missing = branch.length - branch.kv_length
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
        with pytest.raises(ValueError, match=r"rows: got .*, expected ascending indices in 0\.\.2"):
            await root.read([1, 2, 3], rows)
        with pytest.raises(ValueError, match="exceed the model's 512 positions"):
            await root.read([1] * 500, [0])
        assert root.tokens == PROMPT
        assert (await root.read([], [])).shape == (0, 64)
        root.release()

    decoder.run(search())


# -- embedding input (P10)


async def mixed(
    decoder: TreeDecoder, model: PreTrainedModel, forced: list[int], soft: torch.Tensor
) -> tuple[Branch, torch.Tensor]:
    """Prompt, embeddings and text in one branch, and the embeddings of all of it for a plain forward."""
    root = await decoder.root(PROMPT, SamplingParams(temperature=0))
    (branch,) = root.fork()
    root.release()
    states = await branch.extend_embeds(soft)
    await branch.extend(forced)
    embedding = model.get_input_embeddings()
    with torch.no_grad():
        parts = [embedding(torch.tensor(PROMPT)), soft, embedding(torch.tensor(forced))]
        inputs = torch.cat(parts)[None]
        expected = model.base_model(inputs_embeds=inputs).last_hidden_state[0]
    close(states, expected[len(PROMPT) : len(PROMPT) + len(soft)])
    return branch, inputs


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "qwen2"])
def test_embeddings_stand_in_for_tokens(family: str) -> None:
    model = tiny_model(family)
    decoder = make(model, max_batch_tokens=16)
    soft = torch.randn(20, 64, generator=torch.Generator().manual_seed(1)) * 0.3

    async def search() -> None:
        branch, inputs = await mixed(decoder, model, [5, 6, 7], soft)
        with torch.no_grad():
            logprobs = model(inputs_embeds=inputs).logits[0].log_softmax(-1)
        close(torch.tensor(branch.logprobs[-2:]), logprobs[[-3, -2], [6, 7]])
        close(await branch.next_logprobs(), logprobs[-1])
        assert branch.tokens == [*PROMPT, *[-1] * 20, 5, 6, 7]
        at = len(PROMPT) + 11  # the cut's last embedding is fed again
        (child,) = branch.fork(1, at=at)
        close(await child.next_logprobs(), logprobs[at - 1])
        branch.truncate(at + 3)
        close(await branch.next_logprobs(), logprobs[at + 2])
        await gather(branch.step(max_step_tokens=3), child.extend([1, 2]), decoder.root([3, 4]))
        with torch.no_grad():
            embedding = model.get_input_embeddings()
            again = torch.cat([inputs[0, : at + 3], embedding(torch.tensor(branch.tokens[at + 3 :]))])[None]
            logprobs = model(inputs_embeds=again).logits[0].log_softmax(-1)
        close(await branch.next_logprobs(), logprobs[-1])

    asyncio.run(search())


def test_ids_of_tokens_as_embeddings_give_what_the_ids_give(
    decoder: TreeDecoder, model: PreTrainedModel
) -> None:
    async def search() -> None:
        ids = list(b"some words")
        root = await decoder.root(PROMPT)
        by_id, by_embeds = root.fork(2)
        resident = pages(decoder)
        states = await by_id.read(ids, range(len(ids)))
        taken = pages(decoder) - resident
        close(await by_embeds.extend_embeds(model.get_input_embeddings()(torch.tensor(ids))), states)
        assert pages(decoder) - resident == 2 * taken
        close(await by_embeds.next_logprobs(), await by_id.next_logprobs())
        for b in (root, by_id, by_embeds):
            b.release()

    decoder.run(search())


def test_embeddings_have_no_text_and_match_no_prompt(decoder: TreeDecoder) -> None:
    async def search() -> None:
        root = await decoder.root(PROMPT)
        twin = (await decoder.root(PROMPT)).fork()[0]
        for branch in (root, twin):
            await branch.extend_embeds(torch.full((3, 64), 0.1))
            await branch.extend("done")
        assert (root.text, root.full_text) == ("done", bytes(PROMPT).decode() + "done")
        await root.step(max_step_tokens=2, repetition_penalty=1.5, stop=("zz",))
        fed = decoder.stats().forward_tokens
        other = await decoder.root([*PROMPT, *b"done"])
        assert decoder.stats().forward_tokens - fed == 4
        with pytest.raises(ValueError, match="got one with 3 embeddings, expected none, as a snapshot"):
            root.snapshot()
        for b in (root, twin, other):
            b.release()

    decoder.run(search())


@pytest.mark.parametrize(
    ("embeds", "error", "match"),
    [
        (torch.zeros(64), ValueError, r"embeds: got shape \[64\], expected \[n, 64\]"),
        (torch.zeros(2, 32), ValueError, r"embeds: got shape \[2, 32\], expected \[n, 64\]"),
        (
            torch.zeros(2, 64, dtype=torch.long),
            TypeError,
            "embeds: got torch.int64, expected a tensor of floating point",
        ),
        ([[0.0] * 64], TypeError, "embeds: got list, expected a tensor of floating point"),
        (torch.full((1, 64), math.nan), ValueError, "embeds: got NaN or inf, expected finite"),
        (torch.zeros(500, 64), ValueError, "500 more after 53 exceed the model's 512 positions"),
    ],
)
def test_bad_embeddings(decoder: TreeDecoder, embeds: object, error: type[Exception], match: str) -> None:
    async def search() -> None:
        root = await decoder.root(PROMPT)
        with pytest.raises(error, match=match):
            await root.extend_embeds(embeds)  # type: ignore[arg-type]
        assert root.tokens == PROMPT
        root.release()

    decoder.run(search())
