"""Around training: what counts as a change of the weights and what does not, dropout, searches meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch
from primitives import close, make, plain_next_logprobs
from search_options import small_options
from tiny_models import byte_tokenizer, tiny_model
from tts_decode import SamplingParams, StaleKVError, TreeDecoder, UnsupportedModelError
from tts_decode.search import STRATEGIES
from weight_changes import PATHS, PROMPT, adapter_added, data_written, in_place, layer, optimizer

pytestmark = pytest.mark.usefixtures("one_thread")


def test_decoders_of_a_model_notice_alike_and_share_what_is_packed() -> None:
    model = tiny_model()
    first, second = make(model), make(model)

    async def train() -> None:
        roots = [await decoder.root(PROMPT) for decoder in (first, second)]
        data_written(model)
        first.weights_changed()
        for root in roots:
            with pytest.raises(StaleKVError):
                await root.next_logprobs()
            await root.recompute()
            close(await root.next_logprobs(), plain_next_logprobs(model, PROMPT))
        assert first.runtime.engine.packed is second.runtime.engine.packed
        assert first.weights_epoch == second.weights_epoch

    asyncio.run(train())


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda model: model.to(torch.bfloat16), "dtype changed from torch.float32 to torch.bfloat16"),
        (lambda model: model.resize_token_embeddings(300), "embedding table changed"),
    ],
)
@PATHS
def test_a_model_that_no_longer_fits_is_refused(change: Any, match: str, pack_weights: bool) -> None:
    model = tiny_model()
    decoder = make(model, pack_weights=pack_weights)

    async def train() -> None:
        root = await decoder.root(PROMPT)
        change(model)
        for _ in range(2):
            with pytest.raises(UnsupportedModelError, match=match):
                await decoder.root(PROMPT)
        with pytest.raises(StaleKVError):
            await root.step()
        fresh = await make(model, pack_weights=pack_weights).root(PROMPT)
        torch.testing.assert_close(
            await fresh.next_logprobs(),
            plain_next_logprobs(model, PROMPT).float(),
            atol=0.3,
            rtol=0,  # bfloat16
        )

    asyncio.run(train())


def test_a_model_in_training_is_served_in_eval_mode() -> None:
    model = tiny_model()
    adapter_added(model)
    decoder = make(model)
    plain = plain_next_logprobs(model, PROMPT)
    model.train()
    layer(model).mlp.eval()

    async def rollout() -> None:
        root = await decoder.root(PROMPT)
        close(await root.next_logprobs(), plain)

    decoder.run(rollout())
    assert model.training
    assert not layer(model).mlp.training
    assert layer(model).self_attn.training


def test_parts_in_training_are_served_in_eval_mode() -> None:
    """As after `model.model.train()`, which leaves the head's flag as it is."""
    model = tiny_model()
    adapter_added(model)
    decoder = make(model)
    plain = plain_next_logprobs(model, PROMPT)
    model.model.train()

    async def rollout() -> None:
        root = await decoder.root(PROMPT)
        close(await root.next_logprobs(), plain)

    decoder.run(rollout())
    assert not model.training
    assert model.model.training
    assert layer(model).mlp.gate_proj.dropout.training


@PATHS
def test_frequencies_that_each_forward_writes_are_no_change(pack_weights: bool) -> None:
    """Rotary embeddings of type longrope write theirs."""
    longrope = {"rope_type": "longrope", "short_factor": [1.5] * 16, "long_factor": [1.5] * 16}
    model = tiny_model(
        rope_parameters=longrope | {"rope_theta": 1e4, "original_max_position_embeddings": len(PROMPT) + 2}
    )
    decoder = make(model, pack_weights=pack_weights)

    async def rollout() -> None:
        root = await decoder.root(PROMPT, SamplingParams(max_step_tokens=5))
        epoch, packed = decoder.weights_epoch, decoder.runtime.engine.packed
        (child,) = root.fork()
        for branch in (root, child):
            await branch.step()
            close(await branch.next_logprobs(), plain_next_logprobs(model, branch.tokens))
        assert make(model, pack_weights=pack_weights).weights_epoch == epoch == decoder.weights_epoch
        assert decoder.runtime.engine.packed is packed
        model.model.rotary_emb.original_inv_freq.mul_(0.5)  # of which each forward makes them
        assert decoder.weights_epoch > epoch

    decoder.run(rollout())


def test_weights_that_nobody_wrote_stay() -> None:
    """An optimizer of another model, or without gradients, and reading."""
    model, other = tiny_model(), tiny_model()
    decoder = make(model)
    epoch = decoder.weights_epoch
    optimizer(torch.optim.SGD)(other)
    torch.optim.AdamW(model.parameters(), fused=True).step()
    model.state_dict()
    plain_next_logprobs(model, PROMPT)
    decoder.run(decoder.root(PROMPT))
    assert decoder.weights_epoch == epoch


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_search_over_changed_weights_ends_with_an_error(name: str) -> None:
    model = tiny_model()
    model.config.max_position_embeddings = 4096
    decoder = TreeDecoder(model, byte_tokenizer(), kv_bytes=16 << 20)
    sampling = SamplingParams(max_tokens=24, max_step_tokens=6, seed=5)

    async def train() -> None:
        while decoder.stats().steps < 4:
            await asyncio.sleep(0)
        in_place(model)

    async def search() -> None:
        root = await decoder.root("What is 2 + 3?", sampling)
        training = asyncio.ensure_future(train())
        with pytest.raises(StaleKVError):
            await STRATEGIES[name](root, **small_options(name))
        await training
        root.release()
        assert (decoder.stats().branches, decoder.stats().resident_bytes) == (0, 0)

    decoder.run(search())
