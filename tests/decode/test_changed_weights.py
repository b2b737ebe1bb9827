"""Weights that change between calls: what the decoder gives is always the model's own plain forward."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from primitives import close, make, plain_logprobs, plain_next_logprobs
from tiny_models import byte_tokenizer, tiny_model
from tts_decode import SamplingParams, StaleKVError, TreeBranch, TreeDecoder, gather
from tts_decode.model.families.conditions import why_general
from weight_changes import PATHS, PROMPT, SEEN, TOLD, in_place

pytestmark = pytest.mark.usefixtures("one_thread")


@PATHS
@pytest.mark.parametrize("name", [*SEEN, *TOLD])
def test_nothing_of_the_old_weights_is_used(name: str, pack_weights: bool) -> None:
    model = tiny_model()
    decoder = make(model, pack_weights=pack_weights)

    async def train() -> None:
        root = await decoder.root(PROMPT, SamplingParams(max_step_tokens=4))
        (child,) = root.fork()
        await child.step()
        pin = decoder.pin(child)
        before = plain_next_logprobs(model, child.tokens)
        if name in SEEN:
            SEEN[name](model)
        else:
            TOLD[name](model)
            decoder.weights_changed()
        assert (plain_next_logprobs(model, child.tokens) - before).abs().max() > 0.1  # the change is one
        fresh = await decoder.root(child.tokens)
        close(await fresh.next_logprobs(), plain_next_logprobs(model, child.tokens))
        assert not pin.resident
        for branch in (root, child, *child.fork(), *child.fork(at=len(PROMPT))):
            with pytest.raises(StaleKVError, match=r"await branch.recompute\(\)"):
                await branch.step()
            await branch.recompute()
            close(await branch.next_logprobs(), plain_next_logprobs(model, branch.tokens))

    decoder.run(train())


@PATHS
@pytest.mark.parametrize(
    "call",
    [
        lambda branch: branch.step(),
        lambda branch: branch.extend([1, 2]),
        lambda branch: branch.read([1, 2], [1]),
        lambda branch: branch.extend_embeds(torch.zeros(2, 64)),
        lambda branch: branch.next_logprobs(),
        lambda branch: branch.logprobs_of([1, 2]),
        lambda branch: branch.replay(branch.steps[0]),
    ],
)
def test_every_call_says_so(call: Callable[[TreeBranch], Any], pack_weights: bool) -> None:
    model = tiny_model()
    decoder = make(model, pack_weights=pack_weights)

    async def train() -> None:
        root = await decoder.root(PROMPT, SamplingParams(max_step_tokens=3))
        (child,) = root.fork()
        await child.step()
        tokens = list(child.tokens)
        in_place(model)
        for _ in range(2):  # as it is noticed, and later
            with pytest.raises(StaleKVError):
                await call(child)
        with pytest.raises(StaleKVError):
            decoder.pin(root)
        assert child.tokens == tokens
        assert len(child.logprobs) == 3
        assert child.stale
        assert decoder.stats().resident_bytes == 0
        (cut,) = child.fork(at=len(PROMPT) + 1)
        root.truncate(5)
        assert cut.stale
        assert root.stale
        restored = await decoder.restore(child.snapshot())
        close(await restored.next_logprobs(), plain_next_logprobs(model, tokens))

    decoder.run(train())


def test_branches_that_are_recomputed_share_their_prefix_again() -> None:
    model = tiny_model()
    decoder = make(model)

    async def train() -> None:
        root = await decoder.root(PROMPT, SamplingParams(max_step_tokens=4))
        branches = [root, *root.fork(5)]
        await gather(branch.step() for branch in branches[1:])
        await branches[1].recompute()  # of this epoch: does nothing
        before = decoder.stats()
        in_place(model)
        told = [(b.tokens[:], b.logprobs[:], b.steps[:], b.seed) for b in branches]
        await gather(branch.recompute() for branch in branches)
        after = decoder.stats()
        assert [(b.tokens, b.logprobs, b.steps, b.seed) for b in branches] == told
        assert (
            after.forward_tokens - before.forward_tokens < len(PROMPT) + 5 * 5
        )  # a branch's own and its last
        assert after.resident_bytes <= before.resident_bytes + decoder.stats().page_bytes
        for branch in branches:
            close(await branch.next_logprobs(), plain_next_logprobs(model, branch.tokens))
            branch.release()
        assert decoder.stats().branches == decoder.stats().resident_bytes == 0

    decoder.run(train())


def test_embeddings_are_kept() -> None:
    model = tiny_model()
    decoder = make(model)
    embeds = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))

    async def train() -> None:
        root = await decoder.root(PROMPT)
        await root.extend_embeds(embeds)
        await root.extend([7])
        in_place(model)
        (child,) = root.fork()
        await gather(branch.recompute() for branch in (root, child))
        table = model.get_input_embeddings()
        with torch.no_grad():
            inputs = torch.cat([table(torch.tensor(PROMPT)), embeds, table(torch.tensor([7]))])
            plain = model(inputs_embeds=inputs[None]).logits[0, -1].log_softmax(-1)
        for branch in (root, child):
            close(await branch.next_logprobs(), plain)

    decoder.run(train())


@pytest.mark.parametrize("failure", ["cancelled", "out of pages", "released"])
def test_a_recompute_that_fails_changes_nothing(failure: str) -> None:
    model = tiny_model()
    pages = make(model).stats().page_bytes
    small = TreeDecoder(model, byte_tokenizer(), kv_bytes=8 * pages, max_batch_tokens=8)

    async def train() -> None:
        root = await small.root(PROMPT, SamplingParams(temperature=0, max_step_tokens=4))
        tokens = list(root.tokens)
        in_place(model)
        other = await small.root([1] * 100)
        if failure != "out of pages":
            other.release()
            task = asyncio.ensure_future(root.recompute())
            while small.stats().unique_tokens < 20:
                await asyncio.sleep(0)
            if failure == "cancelled":
                task.cancel()
                await asyncio.wait([task])
            else:
                root.release()
                with pytest.raises(RuntimeError, match="released"):
                    await task
                assert small.stats().branches == 0
                return
        else:
            with pytest.raises(RuntimeError, match="KV pages"):
                await root.recompute()
            other.release()
        assert root.stale
        assert root.tokens == tokens
        assert (small.stats().branches, small.stats().resident_bytes) == (1, 0)
        await root.recompute()
        close(await root.next_logprobs(), plain_next_logprobs(model, tokens))

    small.run(train())


@PATHS
def test_a_step_in_flight_ends_with_the_tokens_it_has(pack_weights: bool) -> None:
    model = tiny_model()
    decoder = make(model, pack_weights=pack_weights)

    async def train() -> None:
        root = await decoder.root(PROMPT, SamplingParams(max_step_tokens=30))
        branches = root.fork(3)
        steps = [asyncio.ensure_future(branch.step()) for branch in branches]
        while branches[0].length < len(PROMPT) + 5:
            await asyncio.sleep(0)
        in_place(model)
        results = await asyncio.gather(*steps, return_exceptions=True)
        assert all(isinstance(result, StaleKVError) for result in results)
        for branch in branches:
            assert branch.length == len(PROMPT) + 5
            assert len(branch.logprobs) == 5
            await branch.recompute()
            close(await branch.next_logprobs(), plain_next_logprobs(model, branch.tokens))
            await branch.step(max_step_tokens=2)

    decoder.run(train())


@PATHS
def test_forced_text_in_flight_is_not_kept_and_prompts_start_over(pack_weights: bool) -> None:
    model = tiny_model()
    decoder = make(model, pack_weights=pack_weights, max_batch_tokens=8)

    async def train() -> None:
        root = await decoder.root([1, 2, 3])
        kept = list(root.tokens)
        calls = [root.extend([5] * 40), decoder.root(PROMPT), decoder.root([*PROMPT, 9])]
        tasks = [asyncio.ensure_future(call) for call in calls]
        while decoder.stats().unique_tokens < 30:
            await asyncio.sleep(0)
        in_place(model)
        forced, first, second = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(forced, StaleKVError)
        assert root.tokens == kept
        for branch in (first, second):
            assert isinstance(branch, TreeBranch)
            close(await branch.next_logprobs(), plain_next_logprobs(model, branch.tokens))
        await root.recompute()
        tokens = [5] * 40
        close(await root.extend(tokens), plain_logprobs(model, kept + tokens)[2:-1, 5])

    decoder.run(train())


@settings(max_examples=12)
@given(seed=st.integers(0, 2**32), pack_weights=st.booleans())
def test_random_programs(seed: int, pack_weights: bool) -> None:
    rng = random.Random(seed)
    model = tiny_model()
    decoder = make(model, pack_weights=pack_weights, max_batch_tokens=rng.choice([8, 512]))
    sampling = SamplingParams(max_step_tokens=3)

    async def renewed(branch: TreeBranch, call: Callable[[], Any]) -> Any:
        """The call, after a recompute where it is due; nothing in between."""
        try:
            return await call()
        except StaleKVError:
            assert branch.stale
            await branch.recompute()
            return await call()

    async def program() -> None:
        branches: list[TreeBranch] = [await decoder.root(PROMPT, sampling)]
        pins = []
        for _ in range(14):
            branch = rng.choice(branches)
            match rng.choice(
                ["root", "fork", "pin", "release", "step", "extend", "truncate", *["change"] * 3]
            ):
                case "root":
                    prompt = branch.tokens[: rng.randint(1, branch.length)]
                    branches.append(await decoder.root(prompt, sampling))
                case "fork":
                    branches += branch.fork(2, at=rng.randint(1, branch.length))
                case "pin" if not branch.stale and branch.kv_length:
                    pins.append(await renewed(branch, lambda b=branch: async_pin(decoder, b)))
                case "release" if len(branches) > 1:
                    branches.remove(branch)
                    branch.release()
                case "step":
                    await gather(renewed(b, b.step) for b in {branch, rng.choice(branches)})
                case "extend":
                    forced = [rng.randrange(256) for _ in range(rng.randint(1, 20))]
                    got = await renewed(branch, lambda b=branch, f=forced: b.extend(f))
                    rows = plain_logprobs(model, branch.tokens)[-len(forced) - 1 : -1]
                    alike(got, rows[range(len(forced)), forced])
                case "truncate":
                    branch.truncate(rng.randint(1, branch.length))
                case "change":
                    SEEN[rng.choice(["in_place", "data_replaced_twice", "AdamW fused", "layer_replaced"])](
                        model
                    )
            shown = rng.choice(branches)
            alike(await renewed(shown, shown.next_logprobs), plain_next_logprobs(model, shown.tokens))
        for branch in branches:
            branch.release()
        for pin in pins:
            pin.release()
        assert (decoder.stats().branches, decoder.stats().resident_bytes) == (0, 0)

    decoder.run(program())


def alike(actual: torch.Tensor, wanted: torch.Tensor) -> None:
    """Of weights that grew; what is of other ones is off by 0.1 at least."""
    torch.testing.assert_close(actual, wanted, atol=5e-3, rtol=0)


async def async_pin(decoder: TreeDecoder, branch: TreeBranch) -> Any:
    return decoder.pin(branch)


@PATHS
def test_a_look_at_hidden_states_changes_nothing(pack_weights: bool) -> None:
    """The first one leaves hooks of transformers on the layers, which record in such calls alone."""
    model = tiny_model()
    decoder = make(model, pack_weights=pack_weights)

    async def look() -> None:
        root = await decoder.root(PROMPT, SamplingParams(max_step_tokens=4))
        with torch.no_grad():
            model(torch.tensor([root.tokens]), output_hidden_states=True, output_attentions=True)
        await root.step()
        close(await root.next_logprobs(), plain_next_logprobs(model, root.tokens))
        model.model.layers[0].register_forward_hook(lambda module, args, output: output * 2)
        with pytest.raises(StaleKVError):
            await root.step()

    decoder.run(look())
    seen = tiny_model()
    with torch.no_grad():
        seen(torch.tensor([[1, 2]]), output_hidden_states=True)
    assert why_general(seen) == why_general(tiny_model())
