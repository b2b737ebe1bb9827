"""Models whose rotary frequencies change with the length of a text: right up to there, refused beyond."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from checked_models import DECODER_SHAPE, made, serve
from torch import Tensor
from transformers import PreTrainedModel
from tts_decode import PromptTooLongError, SamplingParams, TreeDecoder

pytestmark = pytest.mark.usefixtures("one_thread")
ORIGINAL = 64
TEXT = torch.randint(2, 250, (120,), generator=torch.Generator().manual_seed(7)).tolist()
_SHAPE = DECODER_SHAPE | {"eos_token_id": None}
_PAIRS = DECODER_SHAPE["head_dim"] // 2
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0 + i / 40 for i in range(_PAIRS)],
    "long_factor": [2.0 + i / 2 for i in range(_PAIRS)],
    "factor": 8.0,
    "original_max_position_embeddings": ORIGINAL,
}


def longrope(**changes: Any) -> PreTrainedModel:
    return made(hf.LlamaConfig(**_SHAPE, rope_parameters=_LONGROPE | changes))


def dynamic() -> PreTrainedModel:
    shape = _SHAPE | {"max_position_embeddings": ORIGINAL + 1}
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
    return made(hf.LlamaConfig(**shape, rope_parameters=rope))


MODELS = pytest.mark.parametrize("make", [longrope, dynamic])
PATHS = pytest.mark.parametrize("pack_weights", [True, False], ids=["packed", "general"])


def plain(model: PreTrainedModel, tokens: list[int]) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0, -1].log_softmax(-1)


async def followed(decoder: TreeDecoder, tokens: list[int]) -> Tensor:
    """Log-probabilities behind a text that is a prompt, forced in a fork, and stepped."""
    root = await decoder.root(tokens[:20])
    branch = root.fork(1)[0]
    await branch.extend(tokens[20:-2])
    for token in tokens[-2:]:
        await branch.extend([token])
    return await branch.next_logprobs()


@MODELS
@PATHS
def test_texts_up_to_the_limit_are_right(make: Any, pack_weights: bool) -> None:
    """Also after a longer text went through the model outside the decoder, which leaves other frequencies."""
    model = make()
    decoder = serve(model, pack_weights=pack_weights)
    assert decoder.max_positions == ORIGINAL
    for length in (ORIGINAL, 30):
        expected = plain(make(), TEXT[:length])
        plain(model, TEXT)
        found = decoder.run(followed(decoder, TEXT[:length]))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@MODELS
def test_longer_texts_are_refused_by_name(make: Any) -> None:
    decoder = serve(make())

    async def too_long() -> None:
        with pytest.raises(PromptTooLongError, match=f"allows {ORIGINAL} .*scaling of type {make.__name__}"):
            await decoder.root(TEXT[: ORIGINAL + 1])
        branch = await decoder.root(TEXT[:ORIGINAL])
        with pytest.raises(PromptTooLongError, match=f"{ORIGINAL} positions .*type {make.__name__}"):
            await branch.extend([5])

    decoder.run(too_long())


@MODELS
def test_a_branch_ends_where_the_frequencies_would_change(make: Any) -> None:
    decoder = serve(make())

    async def grown() -> tuple[int, bool]:
        branch = await decoder.root(TEXT[: ORIGINAL - 5], SamplingParams(temperature=0, max_step_tokens=50))
        await branch.step()
        return branch.length, branch.finished

    assert decoder.run(grown()) == (ORIGINAL, True)


def test_equal_factors_have_no_limit() -> None:
    """As who wants longer texts sets them: the numbers of the long factors at all lengths."""
    model = longrope(short_factor=_LONGROPE["long_factor"])
    decoder = serve(model)
    assert decoder.max_positions == DECODER_SHAPE["max_position_embeddings"]
    expected = plain(longrope(), TEXT)  # beyond the original context the same
    torch.testing.assert_close(decoder.run(followed(decoder, TEXT)), expected, atol=1e-4, rtol=0)
