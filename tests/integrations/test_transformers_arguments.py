"""Arguments that are refused by the name under which they came, of TreeCache, models and `generate`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from transformers import PreTrainedModel
from tree_caches import cache_of, generate, model_of, prompts

from tts_kernels.integrations.transformers import TreeCache, UnsupportedError, WrongCacheError, register
from tts_kernels.integrations.transformers.versions import cache_argument

pytestmark = pytest.mark.usefixtures("one_thread")
register()

HEADS: dict[str, Callable[[], Any]] = {
    "named": lambda: hf.LlamaConfig(head_dim=16),
    "larger": lambda: hf.LlamaConfig(head_dim=272),
    "between": lambda: hf.LlamaConfig(head_dim=40),
    "hidden / heads": lambda: hf.GPT2Config(n_embd=64, n_head=4),
    "no argument": lambda: hf.Qwen2Config(hidden_size=96, num_attention_heads=4),
    "of its own name": lambda: hf.JetMoeConfig(kv_channels=24),
}


@pytest.mark.parametrize("name", HEADS)
def test_head_sizes(name: str) -> None:
    words = r"got heads of (16|272|40|24) channels \(head_dim\), no multiple of 16 from 32 to 256, which"
    with pytest.raises(UnsupportedError, match=words):
        TreeCache(HEADS[name](), layout="packed")


@pytest.mark.parametrize("gpu", [False, True])
def test_head_sizes_of_a_gpu(monkeypatch: pytest.MonkeyPatch, gpu: bool) -> None:
    """Its pages hold smaller heads; a model on the CPU is refused in its first forward then."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    model = model_of(head_dim=16)
    TreeCache(model.config, layout="HND")
    if gpu:
        cache = cache_of(model)
        with pytest.raises(UnsupportedError, match=r"^LlamaAttention: got heads of 16 channels"):
            generate(model, *prompts(20), cache)
        assert (cache.batch_size, cache.pool) == (0, None)
        with pytest.raises(UnsupportedError, match=r"heads of 12 .*, no multiple of 8 from 16 to 256"):
            TreeCache(model_of(head_dim=12).config)
    else:
        with pytest.raises(UnsupportedError, match=r"^llama: got heads of 16 channels"):
            cache_of(model)


@pytest.mark.parametrize("shape", [[3, 1, 20], [1, 1, 20], [3, 20]], ids=str)
def test_positions_of_another_shape(tree: PreTrainedModel, shape: list[int]) -> None:
    """They change the shape of the keys, which the attention gets."""
    ids, _ = prompts(20)
    cache = cache_of(tree)
    words = rf"^position_ids: got {re.escape(str(shape))}, by .*, expected \[1, 20\].*leave position_ids out"
    with torch.no_grad(), pytest.raises(UnsupportedError, match=words):
        tree(ids, position_ids=torch.arange(20).expand(shape), **{cache_argument(): cache})
    assert (cache.batch_size, cache.pool) == (0, None)


@pytest.mark.parametrize("by_position", [False, True])
@pytest.mark.parametrize("kind", ["tree", "own"])
def test_two_caches_of_a_forward(tree: PreTrainedModel, kind: str, by_position: bool) -> None:
    ids, _ = prompts(20)
    cache = cache_of(tree)
    other: Any = cache_of(tree) if kind == "tree" else hf.DynamicCache(config=tree.config)
    words = rf"^past_key_values: got a {type(other).__name__} beside another cache, a TreeCache, .* alone"
    args, options = ((None, None, cache), {}) if by_position else ((), {"cache": cache})
    with torch.no_grad(), pytest.raises(UnsupportedError, match=words):
        tree(ids, *args, **options, past_key_values=other)
    assert (cache.batch_size, other.get_seq_length()) == (0, 0)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
@pytest.mark.parametrize("given", ["tree", TreeCache], ids=["text", "class"])
def test_what_is_no_cache(tree: PreTrainedModel, name: str, given: Any) -> None:
    ids, _ = prompts(20)
    words = rf"^{name}: got .*, expected a TreeCache; pass {cache_argument()}=TreeCache\(model\.config\)"
    for call in tree, tree.generate:
        with pytest.raises(WrongCacheError, match=words):
            call(ids, **{name: given})


@pytest.mark.parametrize("filled", [False, True])
def test_a_mask_that_generate_infers(filled: bool) -> None:
    """From pad ids, which are tokens of this prompt."""
    model = model_of(pad_token_id=7)
    ids, _ = prompts(20)
    ids[0, 5] = 7
    cache = cache_of(model)
    if filled:
        cache.prefill(model, ids)
    words = r"^attention_mask: got none, so generate inferred one, .* pad_token_id 7, .*torch\.ones_like"
    with pytest.raises(UnsupportedError, match=words):
        generate(model, ids, None, cache)
    assert cache.get_seq_length() == (19 if filled else 0)
    expected = generate(model_of("sdpa", pad_token_id=7), ids, torch.ones_like(ids))
    assert torch.equal(generate(model, ids, torch.ones_like(ids), cache), expected)
    with pytest.raises(UnsupportedError, match=r"^attention_mask: got (zeros|rows)"):
        generate(model, ids, (ids != 7).long(), cache_of(model))
    padded, mask = prompts(20, 9)  # with the id that ends a text: `generate` infers nothing
    cache, model = cache_of(model), model_of()
    cache.prefill(model, padded, mask)
    with pytest.raises(UnsupportedError, match=r"^attention_mask: got none, or nothing but ones"):
        generate(model, padded, None, cache)
