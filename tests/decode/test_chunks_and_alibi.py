"""Llama 4's chunks and growing queries, and ALiBi in BLOOM and MPT, against transformers' own forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from plain_forward import check_tree
from primitives import make, plain_logprobs
from tiny_models import tiny_model
from torch import Tensor
from tts_decode import PromptTooLongError, SparseConfig, TreeDecoder, UnsupportedModelError
from tts_decode.model import tree_attention
from tts_decode.model.support import own_forwards

pytestmark = pytest.mark.usefixtures("one_thread")
TEXT = torch.randint(0, 250, (110,), generator=torch.Generator().manual_seed(1)).tolist()
MODELS: dict[str, Callable[..., Any]] = {
    "llama4": lambda **o: tiny_model("llama4", **o),
    "llama4 of whole pages": lambda **o: tiny_model("llama4", attention_chunk_size=16, **o),
    "llama4 of one token": lambda **o: tiny_model("llama4", attention_chunk_size=1, **o),
    "llama4 without norms of heads": lambda **o: tiny_model("llama4", use_qk_norm=False, **o),
    "llama4 without growth": lambda **o: tiny_model("llama4", attn_temperature_tuning=False, **o),
    "llama4 of full layers": lambda **o: tiny_model("llama4", layer_types=["full_attention"] * 3, **o),
    "llama4 in chunks without rotation": lambda **o: tiny_model(
        "llama4", layer_types=["full_attention", "chunked_attention", "chunked_attention"], **o
    ),
    "bloom": lambda **o: tiny_model("bloom", **o),
    "bloom of 4 heads": lambda **o: tiny_model("bloom", n_head=4, hidden_size=128, **o),
    "bloom with normed residuals": lambda **o: tiny_model(
        "bloom", apply_residual_connection_post_layernorm=True, **o
    ),
    "mpt": lambda **o: tiny_model("mpt", **o),
    "mpt of 4 heads, clipped": lambda **o: tiny_model(
        "mpt", n_heads=4, d_model=128, attn_config={"clip_qkv": 0.8, "softmax_scale": 0.3}, **o
    ),
}


def randomised(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """Norms and biases too, which are one or zero as they are made."""
    model = MODELS[name]()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() < 2:
                weight.add_(torch.randn_like(weight), alpha=0.3)
    return model.to(dtype)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("chunk", [9, 512])
def test_equal_to_transformers(name: str, chunk: int) -> None:
    """A prompt whole and in chunks, steps, forks inside a page, other text after a truncation; several chunks
    of attention long."""
    model = randomised(name)
    decoder = make(model, max_batch_tokens=chunk)
    assert decoder.self_check is not None

    check_tree(decoder, model, TEXT)


async def next_logprobs(decoder: TreeDecoder) -> Tensor:
    root = await decoder.root(TEXT[:70])
    await root.extend(TEXT[70:])
    return await root.next_logprobs()


@pytest.mark.parametrize("name", ["llama4", "bloom", "mpt"])
def test_bfloat16_and_int8_pages_stay_close(name: str) -> None:
    """As far from the float32 model as the model's own bfloat16 forward, but for a factor of 2; with pages
    whose values are rounded 8 times as far."""
    truth = plain_logprobs(randomised(name), TEXT)[-1]
    model = randomised(name, torch.bfloat16)
    own = (plain_logprobs(model, TEXT)[-1].float() - truth).abs().max()
    for options, factor in (({}, 2), ({"kv_dtype": torch.int8}, 8)):
        decoder = make(model, **options)
        assert (decoder.run(next_logprobs(decoder)) - truth).abs().max() <= factor * own


@pytest.mark.parametrize("name", ["llama4", "bloom", "mpt"])
def test_masses_leave_the_bits_as_they_are(name: str) -> None:
    model = randomised(name)
    plain, other = make(model), make(model, track_mass=True)
    assert torch.equal(other.run(next_logprobs(other)), plain.run(next_logprobs(plain)))


def test_layers_in_chunks_stay_dense() -> None:
    """Where no other layer may be sparse, nothing is chosen."""
    model = tiny_model("llama4", layer_types=["chunked_attention"] * 3)
    sparse = SparseConfig(budget=1, dense_layers=0, min_pages=1, recent=1, prompts=True)
    plain, other = make(model), make(model, sparse=sparse)
    assert torch.equal(other.run(next_logprobs(other)), plain.run(next_logprobs(plain)))


@pytest.mark.parametrize("name", ["bloom", "mpt"])
def test_alibi_beside_sparse_attention_is_refused(name: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"sparse: got a SparseConfig for \w+, whose ALiBi"):
        make(MODELS[name](), sparse=SparseConfig())


def test_mpt_ends_where_its_biases_end() -> None:
    decoder = make(tiny_model("mpt", max_seq_len=40))
    assert decoder.max_positions == 40

    async def too_long() -> None:
        with pytest.raises(PromptTooLongError):
            await decoder.root(TEXT[:41])

    decoder.run(too_long())


FORGOTTEN = [("llama4", "attention_chunk"), ("bloom", "alibi_slopes"), ("mpt", "alibi_slopes")]


@pytest.mark.parametrize(("name", "option"), FORGOTTEN)
def test_what_the_pages_are_not_told_is_found_at_load(
    name: str, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    attend = tree_attention.attend_pages

    def forgetful(*args: Any, **limits: Any) -> Tensor:
        return attend(*args, **limits | {option: None})

    monkeypatch.setattr(tree_attention, "attend_pages", forgetful)
    with pytest.raises(UnsupportedModelError, match="does not agree with its own forward: layer 0"):
        make(MODELS[name]())


@pytest.mark.parametrize("chunk", [12, 14, None])
def test_chunks_other_than_those_of_the_masks_are_refused(
    chunk: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where they are longer than the texts of the check."""
    size = 200
    llama4 = own_forwards.FORWARDS["Llama4TextAttention"]

    def wrong(attention: Any, module: Any, *args: Any, **options: Any) -> Any:
        def told(*inputs: Any, attention_chunk: int | None, **others: Any) -> Any:
            changed = None if chunk is None else size + chunk - 13
            attention_chunk = changed if attention_chunk else None
            return attention(*inputs, attention_chunk=attention_chunk, **others)

        return llama4(told, module, *args, **options)

    monkeypatch.setitem(own_forwards.FORWARDS, "Llama4TextAttention", wrong)
    with pytest.raises(UnsupportedModelError, match="an attention mask in layer 0 by which"):
        make(tiny_model("llama4", attention_chunk_size=size))


@pytest.mark.parametrize("floor_scale", [5, 100])
def test_queries_that_do_not_grow_are_found_at_load(
    floor_scale: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where they grow behind the texts of the check that begin at 0 only."""
    monkeypatch.setattr(own_forwards, "_growth", lambda floor_scale, attn_scale: torch.ones_like)
    with pytest.raises(UnsupportedModelError, match="does not agree with its own forward: layer 1"):
        make(tiny_model("llama4", floor_scale=floor_scale))
