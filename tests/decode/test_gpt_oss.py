"""gpt-oss: sinks, windows in every other layer, biased experts and YaRN against transformers' own forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from plain_forward import check_tree
from primitives import make, plain_logprobs
from tiny_models import tiny_model
from torch import Tensor
from tts_decode import SparseConfig, TreeDecoder, UnsupportedModelError
from tts_decode.model.families.conditions import why_general

pytestmark = pytest.mark.usefixtures("one_thread")
TEXT = torch.randint(0, 250, (105,), generator=torch.Generator().manual_seed(1)).tolist()
# YaRN whose original context ends inside the text
_YARN = {"rope_type": "yarn", "factor": 8.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}
_ROPE = _YARN | {"rope_theta": 150_000.0, "original_max_position_embeddings": 64}


def gpt_oss(dtype: torch.dtype = torch.float32) -> Any:
    """With expert biases too, activations beyond the limit of the clamp, and sinks that take much."""
    model = tiny_model("gpt_oss", rope_parameters=dict(_ROPE), swiglu_limit=1.5)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() < 2 or name.endswith("_bias"):
                weight.add_(torch.randn_like(weight), alpha=0.3)
            if name.endswith("sinks"):
                weight.add_(4.0)
    return model.to(dtype)


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "general"])
@pytest.mark.parametrize("chunk", [9, 512])
def test_equal_to_transformers(chunk: int, packed: bool) -> None:
    """A prompt whole and in chunks, steps, forks inside a page, other text after a truncation."""
    model = gpt_oss()
    assert why_general(model) is None
    decoder = make(model, max_batch_tokens=chunk, pack_weights=packed)
    assert (decoder.runtime.engine.packed is not None) is packed
    assert decoder.self_check is not None

    check_tree(decoder, model, TEXT)


async def next_logprobs(decoder: TreeDecoder) -> Tensor:
    root = await decoder.root(TEXT[:70])
    await root.extend(TEXT[70:])
    return await root.next_logprobs()


@pytest.mark.parametrize(
    "options",
    [
        {"track_mass": True},
        {"sparse": SparseConfig(budget=10**6, dense_layers=0)},
        {"sparse": SparseConfig(budget=10**6, dense_layers=0, prompts=True)},
    ],
    ids=["masses", "sparse", "sparse prompts"],
)
def test_attention_of_another_kind_has_the_same_bits(options: dict[str, Any]) -> None:
    model = gpt_oss()
    plain, other = make(model), make(model, **options)
    assert torch.equal(other.run(next_logprobs(other)), plain.run(next_logprobs(plain)))


def test_int8_pages_stay_close() -> None:
    """They change less than half of what the sinks do."""
    model, without = gpt_oss(), gpt_oss()
    with torch.no_grad():
        for layer in without.model.layers:
            layer.self_attn.sinks.fill_(-100.0)
    decoder = make(model, kv_dtype=torch.int8)
    got, expected = decoder.run(next_logprobs(decoder)), plain_logprobs(model, TEXT)[-1]
    sinks = (plain_logprobs(without, TEXT)[-1] - expected).abs()
    assert 0 < (got - expected).abs().max() < sinks.max() / 2


def test_bfloat16_stays_close() -> None:
    """As far from the float32 model as the model's own bfloat16 forward, but for a factor of 2."""
    exact, model = gpt_oss(), gpt_oss(torch.bfloat16)
    decoder = make(model)
    truth = plain_logprobs(exact, TEXT)[-1]
    own = (plain_logprobs(model, TEXT)[-1].float() - truth).abs().max()
    assert (decoder.run(next_logprobs(decoder)) - truth).abs().max() <= 2 * own


def test_sinks_that_are_not_applied_are_found_at_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where they are all zero, as they may be before training."""
    model = gpt_oss()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.sinks.zero_()
    forgetful = "tts_decode.model.tree_attention.attend_pages"
    from tts_decode.model.tree_attention import attend_pages

    monkeypatch.setattr(forgetful, lambda *args, **limits: attend_pages(*args[:-1], **limits))
    with pytest.raises(UnsupportedModelError, match="does not agree with its own forward: layer 0"):
        make(model)


def test_sinks_of_another_shape_are_refused() -> None:
    model = gpt_oss()
    model.model.layers[1].self_attn.sinks = torch.nn.Parameter(torch.zeros(1, 4))
    with pytest.raises(UnsupportedModelError, match="attention sinks other than one of each head"):
        make(model)
