"""`model.generate` over a TreeCache: tokens and scores of transformers' own attention, in every mode."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from torch import Tensor
from transformers import PreTrainedModel

from tts_kernels.integrations.transformers import TreeCache, register
from tts_kernels.integrations.transformers.versions import cache_argument

pytestmark = pytest.mark.usefixtures("one_thread")
register()

NEW = 20
# Without top_k: which token is the 50th, rounding may decide
MODES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "top_k": 0, "temperature": 0.8},
    "samples": {"do_sample": True, "top_k": 0, "num_return_sequences": 4},
    "beams": {"num_beams": 5, "num_return_sequences": 5},
    "wide beams": {"num_beams": 17, "num_return_sequences": 2, "length_penalty": 0.3},
    "beam sampling": {"num_beams": 4, "num_return_sequences": 3, "do_sample": True, "top_k": 0},
    "penalties": {
        "num_beams": 3,
        "no_repeat_ngram_size": 2,
        "repetition_penalty": 1.3,
        "early_stopping": True,
    },
}
# (longest, lengths of the rows): the others are padded on the left
BATCHES = {
    "one": (37, [37]),
    "ragged": (45, [45, 3, 17, 32]),
    "page": (32, [32, 16]),
    "padded": (40, [20, 28]),
}


def prompts(name: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    longest, lengths = BATCHES[name]
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 256, (len(lengths), longest), generator=generator)
    mask = (torch.arange(longest) >= longest - torch.tensor(lengths)[:, None]).long()
    return ids * mask + 256 * (1 - mask), mask


def generate(
    model: PreTrainedModel, ids: Tensor, mask: Tensor | None, cache: TreeCache | None = None, **options: Any
) -> tuple[Tensor, Tensor]:
    """Sequences [rows, length] and scores: [steps, rows, vocabulary], of beam search [rows].

    Of beams that are all but equal, rounding may swap the rows in a step.
    """
    torch.manual_seed(11)
    given = {} if cache is None else {cache_argument(): cache}
    options = {"max_new_tokens": NEW, "return_dict_in_generate": True, "output_scores": True} | options
    out = model.generate(ids, attention_mask=mask, **given, **options)
    return out.sequences, out.sequences_scores if "num_beams" in options else torch.stack(out.scores)


def same(got: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1].isinf(), expected[1].isinf())
    difference = (got[1] - expected[1]).nan_to_num(0.0, 0.0, 0.0).abs().max()
    assert difference < 1e-4


# What differs in attention: heads, windows, soft caps, sinks, no positions. The others only repeat it.
ATTENTIONS = ("llama", "qwen2", "qwen2_sliding", "qwen3", "mistral", "gemma2", "gemma3", "cohere2", "gpt_oss")
EAGER = ("gemma2", "gpt_oss")  # "sdpa" has no soft cap and no sinks


@pytest.fixture(scope="module", params=ATTENTIONS)
def pair(request: pytest.FixtureRequest) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The same model with transformers' own attention and with the tree's."""
    own, tree = tiny_model(request.param), tiny_model(request.param)
    own.set_attn_implementation("eager" if request.param in EAGER else "sdpa")
    tree.set_attn_implementation("tts")
    return own, tree


@pytest.fixture(scope="module")
def llamas() -> tuple[PreTrainedModel, PreTrainedModel]:
    own, tree = tiny_model(), tiny_model()
    own.set_attn_implementation("sdpa")
    tree.set_attn_implementation("tts")
    return own, tree


def tree_cache(model: PreTrainedModel, **options: Any) -> TreeCache:
    return TreeCache(model.config, **{"kv_bytes": 1 << 25} | options)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("mode", MODES)
def test_generate(pair: tuple[PreTrainedModel, PreTrainedModel], mode: str, batch: str) -> None:
    own, tree = pair
    ids, mask = prompts(batch)
    expected = generate(own, ids, mask, **MODES[mode])
    same(generate(tree, ids, mask, tree_cache(tree), **MODES[mode]), expected)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("mode", ["samples", "beams", "beam sampling"])
def test_generate_after_prefill(pair: tuple[PreTrainedModel, PreTrainedModel], mode: str, batch: str) -> None:
    own, tree = pair
    ids, mask = prompts(batch)
    expected = generate(own, ids, mask, **MODES[mode])
    options, cache = MODES[mode], tree_cache(tree)
    copies = max(options.get("num_beams", 1), options.get("num_return_sequences", 1))
    cache.prefill(tree, ids, mask, copies=copies)
    assert cache.batch_size == copies * len(ids)
    same(generate(tree, ids, mask, cache, **options), expected)


@pytest.mark.parametrize("width", [2, 3, 8, 32])
def test_beam_widths(llamas: tuple[PreTrainedModel, PreTrainedModel], width: int) -> None:
    own, tree = llamas
    ids, mask = prompts("ragged")
    options = {"num_beams": width, "num_return_sequences": width}
    same(generate(tree, ids, mask, tree_cache(tree), **options), generate(own, ids, mask, **options))


def test_random_ragged_prompts(llamas: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    own, tree = llamas
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(1, 50, (5,), generator=generator)
        mask = (torch.arange(50) >= 50 - lengths[:, None]).long()
        ids = torch.randint(0, 256, (5, 50), generator=generator) * mask + 256 * (1 - mask)
        expected = generate(own, ids, mask, do_sample=True, top_k=0)
        same(generate(tree, ids, mask, tree_cache(tree), do_sample=True, top_k=0), expected)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_prompt_lookup(family: str) -> None:
    own, tree = tiny_model(family), tiny_model(family)
    tree.set_attn_implementation("tts")
    ids = torch.tensor([[5, 6, 7, 8, 9] * 5])
    options: dict[str, Any] = {"prompt_lookup_num_tokens": 4, "do_sample": False}
    expected = generate(own, ids, torch.ones_like(ids), **options)
    same(generate(tree, ids, torch.ones_like(ids), tree_cache(tree), **options), expected)


@pytest.mark.parametrize("seed", [0, 3], ids=["the model itself", "another model"])
def test_an_assistant(llamas: tuple[PreTrainedModel, PreTrainedModel], seed: int) -> None:
    own, tree = llamas
    ids, mask = prompts("one")
    options: dict[str, Any] = {"assistant_model": tiny_model(seed=seed), "do_sample": False}
    expected = generate(own, ids, mask, **options)
    cache = tree_cache(tree)
    same(generate(tree, ids, mask, cache, **options), expected)
    assert cache.get_seq_length() <= ids.shape[1] + NEW


def test_embeddings_as_inputs(llamas: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    own, tree = llamas
    embeds = torch.randn(2, 21, 64)
    expected = own.generate(inputs_embeds=embeds, max_new_tokens=NEW, do_sample=False)
    given = {cache_argument(): tree_cache(tree)}
    assert torch.equal(
        tree.generate(inputs_embeds=embeds, max_new_tokens=NEW, do_sample=False, **given), expected
    )


@pytest.mark.parametrize("batch", BATCHES)
def test_prefill_in_chunks(pair: tuple[PreTrainedModel, PreTrainedModel], batch: str) -> None:
    """In the first chunks some rows are padding only."""
    own, tree = pair
    ids, mask = prompts(batch)
    expected = generate(own, ids, mask, do_sample=False)
    same(generate(tree, ids, mask, tree_cache(tree), do_sample=False, prefill_chunk_size=7), expected)


def test_going_on_with_a_cache(llamas: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    """A second turn behind the first: all ids again, and of the model only what is new."""
    own, tree = llamas
    ids, mask = prompts("ragged")
    cache = tree_cache(tree)
    first, _ = generate(tree, ids, mask, cache, do_sample=False, min_new_tokens=NEW)
    ids = torch.cat([first, torch.randint(0, 256, (4, 9))], 1)
    mask = torch.cat([mask, torch.ones((4, ids.shape[1] - mask.shape[1]), dtype=torch.long)], 1)
    expected = generate(own, ids, mask, do_sample=False)
    same(generate(tree, ids, mask, cache, do_sample=False), expected)


def test_the_old_name_of_the_argument(llamas: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    own, tree = llamas
    ids, mask = prompts("one")
    expected = own.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False)
    cache = tree_cache(tree)
    got = tree.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, past_key_values=cache)
    assert torch.equal(got, expected)
    assert cache.use().tokens > ids.shape[1]


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_bfloat16_is_as_near_to_float32(family: str) -> None:
    """Logits of both attentions in bfloat16 beside those in float32."""
    ids, mask = prompts("ragged")
    exact = tiny_model(family)
    own, tree = (tiny_model(family, dtype=torch.bfloat16) for _ in range(2))
    own.set_attn_implementation("eager")
    exact.set_attn_implementation("eager")
    tree.set_attn_implementation("tts")
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        wanted, theirs, ours = (
            model(ids, attention_mask=mask, position_ids=positions, **given).logits.float()[mask.bool()]
            for model, given in ((exact, {}), (own, {}), (tree, {cache_argument(): tree_cache(tree)}))
        )
    assert (ours - wanted).square().mean() < 1.5 * (theirs - wanted).square().mean()


def test_plain_pages(llamas: tuple[PreTrainedModel, PreTrainedModel], device: torch.device) -> None:
    """As on a GPU: plain pages and Triton's kernels, in its interpreter where there is none."""
    own, tree = llamas
    if device.type == "cuda":
        own, tree = tiny_model(), tiny_model()
        own.to(device), tree.to(device)
        tree.set_attn_implementation("tts")
    ids, mask = (part.to(device) for part in prompts("ragged"))
    for options in ({"do_sample": False}, {"num_beams": 3}):
        expected = generate(own, ids, mask, max_new_tokens=4, **options)
        same(generate(tree, ids, mask, tree_cache(tree, layout="HND"), max_new_tokens=4, **options), expected)
