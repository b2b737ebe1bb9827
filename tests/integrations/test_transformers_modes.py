"""Modes of `generate` that run a model without its TreeCache are refused by the name of their argument."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from transformers import PreTrainedModel
from tree_caches import cache_of, generate, model_of

from tts_kernels.integrations.transformers import UnsupportedError, WrongCacheError, register
from tts_kernels.integrations.transformers.versions import cache_argument

pytestmark = pytest.mark.usefixtures("one_thread")
register()
IDS = torch.arange(2, 20).view(2, 9)
MASK = torch.ones_like(IDS)

WITHOUT: dict[str, tuple[dict[str, Any], str]] = {
    "guidance_scale": ({"guidance_scale": 1.5}, "got 1.5, expected none.*leave guidance_scale out"),
    "assistant_early_exit": ({"assistant_early_exit": 1}, "got 1, expected none.*leave assistant_early_exit"),
    "use_cache": ({"use_cache": False}, "got False with a TreeCache.*pass use_cache=True"),
}


@pytest.mark.parametrize("way", ["argument", "generation_config", "model"])
@pytest.mark.parametrize("mode", WITHOUT)
def test_modes_that_run_the_model_without_the_cache(mode: str, way: str) -> None:
    """By the argument, wherever it is given; nothing of the model or the cache changes."""
    model = model_of()
    options, words = WITHOUT[mode]
    cache, given = cache_of(model), options
    if way == "generation_config":
        given = {"generation_config": hf.GenerationConfig(**options)}
    elif way == "model":
        model.generation_config.update(**options)
        given = {}
    with pytest.raises(UnsupportedError, match=f"^{mode}: {words}"):
        model.generate(IDS[:1], **given, max_new_tokens=3, **{cache_argument(): cache})
    assert (model.config.num_hidden_layers, cache.batch_size, cache.pool) == (3, 0, None)


def test_settings_that_ask_for_nothing(tree: PreTrainedModel) -> None:
    """An argument goes before a configuration."""
    expected = generate(model_of("sdpa"), IDS, MASK)
    options = {"guidance_scale": 1.0, "use_cache": True}
    config = hf.GenerationConfig(use_cache=False, guidance_scale=2.0, max_new_tokens=3)
    assert torch.equal(generate(tree, IDS, MASK, cache_of(tree), **options), expected)
    assert torch.equal(
        generate(tree, IDS, MASK, cache_of(tree), **options, generation_config=config), expected
    )


def test_an_assistant_with_the_attention_of_the_tree() -> None:
    """It makes a cache of its own, which the attention does not take."""
    tree, other = model_of(), model_of(seed=1)
    given: dict[str, Any] = {"max_new_tokens": 3, cache_argument(): cache_of(tree)}
    words = '^assistant_model: got the model itself, expected another.*attn_implementation="sdpa"'
    with pytest.raises(UnsupportedError, match=words):
        tree.generate(IDS[:1], assistant_model=tree, **given)
    with pytest.raises(
        WrongCacheError, match=r'set_attn_implementation\("sdpa"\), as for a model that is the'
    ):
        tree.generate(IDS[:1], assistant_model=other, **given)
