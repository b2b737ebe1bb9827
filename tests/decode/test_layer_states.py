"""Hidden states of chosen layers against those that transformers returns: packed and general, forked, cut,
beside other branches, sparse."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from primitives import PROMPT, close, make, plain_next_logprobs
from tiny_models import EOS, tiny_model
from torch import Tensor
from transformers import PreTrainedModel
from tts_decode import SamplingParams, gather
from tts_decode.errors import UnsupportedByEngineError

STEPS = SamplingParams(max_step_tokens=3, suppress_token_ids=(EOS,), seed=3)


def plain_layer_states(model: PreTrainedModel, tokens: list[int]) -> Tensor:
    """[layers + 1, hidden] of the last token, by a forward over the whole text. Of a copy of the model, as it
    leaves hooks."""
    with torch.no_grad():
        states = deepcopy(model)(torch.tensor([tokens]), output_hidden_states=True).hidden_states
    return torch.stack([layer[0, -1] for layer in states])


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "cohere", "mixtral"])
def test_states_of_all_layers(family: str, packed: bool) -> None:
    model = tiny_model(family)
    decoder = make(model, pack_weights=packed)

    async def search() -> None:
        root = await decoder.root(PROMPT, STEPS)
        close(await root.layer_states(), plain_layer_states(model, root.tokens))
        branches = root.fork(3)
        await gather(branch.step() for branch in branches[:2])
        for branch, states in zip(
            branches, await gather(branch.layer_states() for branch in branches), strict=True
        ):
            close(states, plain_layer_states(model, branch.tokens))
        for branch in (root, *branches):
            branch.release()

    decoder.run(search())


def test_a_step_goes_on_as_without(model: PreTrainedModel) -> None:
    """Bitwise: the layers one by one give the bits of the one call, and nothing is fed twice on the way."""
    decoder = make(model)

    async def tokens(asked: bool) -> tuple[list[int], list[float], int]:
        root = await decoder.root(PROMPT, STEPS)
        (branch,) = root.fork()
        before = decoder.stats().forward_tokens
        for _ in range(4):
            await branch.step()
            if asked:
                await branch.layer_states()
        found = branch.tokens, branch.logprobs, decoder.stats().forward_tokens - before
        root.release()
        branch.release()
        return found

    plain, kept = decoder.run(tokens(False)), decoder.run(tokens(True))
    assert kept[:2] == plain[:2]
    assert kept[2] == plain[2] + 1  # the last token, which no step asked for


def test_branches_may_ask_for_different_layers_in_one_forward(model: PreTrainedModel) -> None:
    decoder = make(model)

    async def search() -> None:
        root = await decoder.root(PROMPT, STEPS)
        asked: list[tuple[int, ...]] = [(3,), (2, 0), (1, 2, 3)]
        branches = [*root.fork(len(asked)), *root.fork(2)]
        await gather(branch.step() for branch in branches)
        before = decoder.stats().steps

        states = await gather(
            branch.layer_states(layers) for branch, layers in zip(branches, asked, strict=False)
        )
        assert decoder.stats().steps == before + 1
        for branch, layers, got in zip(branches, asked, states, strict=False):
            close(got, plain_layer_states(model, branch.tokens)[list(layers)])
        close(await branches[0].next_logprobs(), plain_next_logprobs(model, branches[0].tokens))
        assert decoder.stats().steps == before + 1
        for branch in (root, *branches):
            branch.release()

    decoder.run(search())


def test_a_cut_branch_and_a_prompt_in_chunks(model: PreTrainedModel) -> None:
    decoder = make(model, max_batch_tokens=5)

    async def search() -> None:
        root = await decoder.root(PROMPT, STEPS)
        await root.step()
        root.truncate(root.length - 2)
        await root.extend(list(b" and on it goes"))
        close(await root.layer_states([1, 3]), plain_layer_states(model, root.tokens)[[1, 3]])
        root.release()

    decoder.run(search())


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("last", "layers: got 'last', expected one of 'all'"),
        ([4], r"layers: got \[4\], expected distinct numbers from 0 to 3"),
        ([1, 1], r"layers: got \[1, 1\], expected distinct"),
        ([], r"layers: got \[\], expected distinct"),
        ([-1], "layers: got -1"),
    ],
)
def test_other_layers_are_named_and_nothing_changes(model: PreTrainedModel, layers, message: str) -> None:
    decoder = make(model)

    async def search() -> None:
        root = await decoder.root(PROMPT, STEPS)
        steps = decoder.stats().steps
        with pytest.raises(ValueError, match=message):
            await root.layer_states(layers)
        await root.next_logprobs()
        assert decoder.stats().steps == steps
        root.release()

    decoder.run(search())


def test_engines_of_texts_say_that_they_have_none() -> None:
    from scripted import scripted_decoder

    async def search() -> None:
        decoder = scripted_decoder(lambda prefix, k: ("a", "eos"))
        root = await decoder.root("Q")
        with pytest.raises(UnsupportedByEngineError, match="layer_states"):
            await root.layer_states()

    scripted_decoder(lambda prefix, k: ("a", "eos")).run(search())
