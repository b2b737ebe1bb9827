"""TreeCache and attn_implementation="tts" refuse unsupported uses by name and with the remedy."""

from __future__ import annotations

import copy
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from tiny_models import tiny_model
from transformers import PreTrainedModel

from tts_kernels.integrations.transformers import (
    TreeCache,
    UnsupportedError,
    VersionError,
    WrongCacheError,
    register,
    versions,
)
from tts_kernels.integrations.transformers.masks import tree_mask
from tts_kernels.integrations.transformers.versions import cache_argument, check_version

pytestmark = pytest.mark.usefixtures("one_thread")
register()

SHAPE: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "pad_token_id": 0,
}
IDS = torch.arange(2, 20).view(2, 9)
ROWS = "tts_kernels.integrations.transformers.rows"


@pytest.fixture(scope="module")
def tree() -> PreTrainedModel:
    model = tiny_model()
    model.set_attn_implementation("tts")
    return model


def generate(model: PreTrainedModel, cache: TreeCache | None = None, **options: Any) -> Any:
    given = {} if cache is None else {cache_argument(): cache}
    return model.generate(IDS, **{"max_new_tokens": 3} | options, **given)


def cache_of(model: PreTrainedModel) -> TreeCache:
    return TreeCache(model.config, kv_bytes=1 << 22)


CONFIGS: dict[str, tuple[Callable[[], Any], str]] = {
    "t5": (hf.T5Config, "an encoder-decoder (cross-attention)"),
    "whisper": (hf.WhisperConfig, "an encoder-decoder (cross-attention)"),
    "falcon": (lambda: hf.FalconConfig(alibi=True), "ALiBi positions"),
    "deepseek_v3": (hf.DeepseekV3Config, "multi-head latent attention (MLA)"),
    "mamba": (hf.MambaConfig, "layers of type"),
    "jamba": (lambda: hf.JambaConfig(num_hidden_layers=8), "layers of type"),
    "qwen3_next": (hf.Qwen3NextConfig, "layers of type linear_attention"),
    "lfm2": (
        lambda: hf.Lfm2Config(num_hidden_layers=2, layer_types=["conv", "full_attention"]),
        "layers of type conv",
    ),
    "llama4_text": (hf.Llama4TextConfig, "chunked attention"),
    "gemma3n_text": (hf.Gemma3nTextConfig, "layers that share the KV of others"),
    "gemma3_text": (
        lambda: hf.Gemma3TextConfig(use_bidirectional_attention=True),
        "bidirectional attention",
    ),
    "gpt2": (lambda: hf.GPT2Config(add_cross_attention=True), "cross-attention"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_models_by_their_config(name: str) -> None:
    make, feature = CONFIGS[name]
    with pytest.raises(UnsupportedError, match=f'{name}: got {re.escape(feature)}.*use "sdpa" or "eager"'):
        TreeCache(make())


def test_sinks_other_than_one_for_each_head() -> None:
    model = tiny_model("gpt_oss")
    model.set_attn_implementation("tts")
    cache = cache_of(model)
    attention = model.model.layers[0].self_attn
    attention.sinks = torch.nn.Parameter(torch.zeros(1, 4), requires_grad=False)
    with pytest.raises(UnsupportedError, match="GptOssAttention: got attention sinks other than one of each"):
        generate(model, cache)
    assert (cache.batch_size, cache.use().pages) == (0, 0)


@pytest.mark.parametrize(
    "config",
    [
        hf.BloomConfig(vocab_size=260, hidden_size=64, n_layer=2, n_head=2),
        hf.MptConfig(vocab_size=260, d_model=64, n_layers=2, n_heads=2),
        hf.FalconConfig(vocab_size=260, hidden_size=64, num_hidden_layers=2, num_attention_heads=2),
    ],
    ids=lambda config: config.model_type,
)
def test_attention_code_of_its_own(config: Any) -> None:
    """ALiBi among them, which these configs do not name."""
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(WrongCacheError, match="attention code of its own"):
        generate(model, cache_of(model), use_cache=True)  # which MPT's own configuration turns off


@pytest.mark.parametrize("name", ["sdpa", "eager"])
def test_another_attention_implementation(name: str) -> None:
    model = tiny_model()
    model.set_attn_implementation(name)
    with pytest.raises(WrongCacheError, match=r'TreeCache.*model\.set_attn_implementation\("tts"\)'):
        generate(model, cache_of(model))


def test_no_tree_cache(tree: PreTrainedModel) -> None:
    with pytest.raises(WrongCacheError, match=r"got no TreeCache.*pass cache=TreeCache\(model.config\)"):
        generate(tree)
    words = r"^use_cache: LlamaAttention got False and no TreeCache.*leave use_cache out and pass cache=Tree"
    with pytest.raises(WrongCacheError, match=words):
        generate(tree, use_cache=False)


def test_another_cache(tree: PreTrainedModel) -> None:
    with pytest.raises(WrongCacheError, match="got no TreeCache"):
        generate(tree, hf.DynamicCache(config=tree.config))  # type: ignore[arg-type]


MOVED: dict[str, dict[str, Any]] = {
    "Contrastive Search": {"penalty_alpha": 0.6, "top_k": 4},
    "Dola Generation": {"dola_layers": "low"},
    "Group Beam Search": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0},
    "Constrained Beam Search": {"num_beams": 4, "force_words_ids": [[3]]},
}


@pytest.mark.parametrize("mode", MOVED)
def test_modes_that_left_transformers(tree: PreTrainedModel, mode: str) -> None:
    """transformers itself refuses them by name: their code is on the Hub."""
    with pytest.raises(ValueError, match=f"{mode} requires `trust_remote_code=True`"):
        generate(tree, cache_of(tree), **MOVED[mode])


def test_continuous_batching(tree: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match="tts is not supported for continuous batching"):
        tree.generate_batch([[1, 2, 3]])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    model = tiny_model(dtype=dtype)
    model.set_attn_implementation("tts")
    with pytest.raises(UnsupportedError, match=f"dtype: got {dtype} keys.*load the model with dtype"):
        generate(model, cache_of(model))


def test_a_forward_with_gradients(tree: PreTrainedModel) -> None:
    with pytest.raises(UnsupportedError, match=r"with gradients.*torch\.no_grad"):
        tree(IDS, **{cache_argument(): cache_of(tree)})


def test_attention_weights(tree: PreTrainedModel) -> None:
    with pytest.raises(UnsupportedError, match="output_attentions: got True"):
        generate(tree, cache_of(tree), output_attentions=True, return_dict_in_generate=True)


def test_dropout() -> None:
    model = tiny_model(attention_dropout=0.1).train()
    model.set_attn_implementation("tts")
    with pytest.raises(UnsupportedError, match=r"dropout of attention weights.*model\.eval\(\)"):
        generate(model, cache_of(model))


MASKS: dict[str, tuple[torch.Tensor, str]] = {
    "right": (torch.tensor([[1] * 9, [1] * 7 + [0] * 2]), 'padding on the left only.*padding_side="left"'),
    "hole": (torch.tensor([[1] * 9, [1, 1, 0, 1, 1, 1, 1, 1, 1]]), "padding on the left only"),
    "short": (torch.ones((2, 8)), r"attention_mask: got \[2, 8\], expected \[2, 9\]"),
    "3d": (torch.ones((2, 9, 9)), r"attention_mask: got \[2, 9, 9\], expected \[2, 9\]"),
    "rows": (torch.ones((3, 9)), r"attention_mask: got \[3, 9\], expected \[2, 9\]"),
    "4d": (torch.ones((2, 1, 9, 9)), "LlamaAttention got a Tensor not made by"),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks(tree: PreTrainedModel, name: str) -> None:
    mask, words = MASKS[name]
    cache = cache_of(tree)
    with torch.no_grad(), pytest.raises(UnsupportedError, match=words):
        tree(IDS, attention_mask=mask, **{cache_argument(): cache})
    assert cache.batch_size == 0


def test_masks_that_change_later(tree: PreTrainedModel) -> None:
    mask = torch.ones((2, 9), dtype=torch.long)
    mask[0, :3] = 0
    cache = cache_of(tree)
    given: dict[str, Any] = {cache_argument(): cache}
    with torch.no_grad():
        tree(IDS, attention_mask=mask, **given)
        with pytest.raises(UnsupportedError, match="attention_mask: got none, or nothing but ones, but rows"):
            tree(IDS[:, :1], **given)
        longer = torch.ones((2, 10), dtype=torch.long)
        with pytest.raises(UnsupportedError, match=r"rows of \[9, 9\] tokens.*expected \[6, 9\]"):
            tree(IDS[:, :1], attention_mask=longer, **given)
        longer[0, :3] = longer[1, 9] = 0
        with pytest.raises(UnsupportedError, match="padding on the left only"):
            tree(IDS[:, :1], attention_mask=longer, **given)
    assert cache.get_seq_length() == 9


def test_masks_of_the_model() -> None:
    """Those that are neither causal nor causal within the window that comes with them."""
    with pytest.raises(UnsupportedError, match="a mask of its own"):
        tree_mask(
            batch_size=1, q_length=3, kv_length=3, mask_function=lambda b, h, q, k: k <= q, use_vmap=True
        )
    for function in (
        lambda b, h, q, k: q >= 0,  # bidirectional
        lambda b, h, q, k: (k <= q) & (k // 4 == q // 4),  # chunked
        lambda b, h, q, k: (k <= q) & (q - k < 3),
        lambda b, h, q, k: (k <= q) & (q - k < 4) & ((q != 3) | (k != 1)),  # in the middle
        lambda b, h, q, k: (k <= q) & (q - k < 4) & ((b < 2) | (k != q)),  # in the last row
        lambda b, h, q, k: torch.zeros(2)[q],  # of another batch
    ):
        with pytest.raises(UnsupportedError, match="does not see the last 4"):
            tree_mask(batch_size=3, q_length=6, kv_length=6, mask_function=function, local_size=4)
    mask = tree_mask(
        batch_size=3,
        q_length=2,
        kv_length=9,
        q_offset=7,
        mask_function=lambda b, h, q, k: (k <= q) & (q - k < 4),
        local_size=4,
    )
    assert (mask.window, mask.padding) == (4, None)


def test_masks_of_long_prompts() -> None:
    """Of 25 million entries some are looked at, without a draw from torch's generator."""
    before = torch.get_rng_state()
    shape = {"batch_size": 1, "q_length": 5000, "kv_length": 5000}
    assert tree_mask(**shape, mask_function=lambda b, h, q, k: k <= q).window is None
    with pytest.raises(UnsupportedError, match="does not see all before it"):
        tree_mask(**shape, mask_function=lambda b, h, q, k: (k <= q) & ((q // 1000 != 2) | (k != 7)))
    assert torch.equal(torch.get_rng_state(), before)


def test_other_numbers_of_rows(tree: PreTrainedModel) -> None:
    cache = cache_of(tree)
    cache.prefill(tree, IDS, copies=2)
    for rows in 2, 3, 8:
        with pytest.raises(UnsupportedError, match=f"got a batch of {rows} rows, but the cache holds 4"):
            tree.generate(IDS[:1].expand(rows, -1), max_new_tokens=2, **{cache_argument(): cache})
    with pytest.raises(ValueError, match=r"holds 4 rows, expected none; call reset\(\)"):
        cache.prefill(tree, IDS)


ARGUMENTS: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "model": (
        lambda model: TreeCache(model),
        TypeError,
        r"config: got \w+, expected a PreTrainedConfig; pass model\.config",
    ),
    "kv_bytes": (lambda model: TreeCache(model.config, kv_bytes=0), ValueError, "kv_bytes: got 0"),
    "kv_bytes type": (lambda model: TreeCache(model.config, kv_bytes=1e9), TypeError, "kv_bytes: got"),
    "share": (lambda model: TreeCache(model.config, share=1), TypeError, "share: got 1"),
    "a page": (
        lambda model: TreeCache(model.config, kv_bytes=12287),
        ValueError,
        "kv_bytes: got 12287, expected >= 12288, one page: .* 3 layers of 2 KV heads of 32 channels in .*16",
    ),
    "a page of float32": (
        lambda model: generate(model, TreeCache(model.config, kv_bytes=24575)),
        ValueError,
        r"kv_bytes: got 24575, expected >= 24576, one page: .* in torch\.float32; pass",
    ),
    "layout": (
        lambda model: TreeCache(model.config, layout="x"),
        ValueError,
        "layout: got 'x', expected one of 'packed', 'HND' or 'NHD'",
    ),
    "layout type": (lambda model: TreeCache(model.config, layout=3), TypeError, "layout: got 3"),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments(tree: PreTrainedModel, name: str) -> None:
    call, error, words = ARGUMENTS[name]
    with pytest.raises(error, match=words):
        call(tree)


@pytest.mark.parametrize("kv_bytes", [10**18, None])
def test_pages_that_the_system_does_not_grant(
    tree: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, kv_bytes: int | None
) -> None:
    """Some systems grant any size, so the pool is one that never gets its memory."""

    def refuse(**_: Any) -> None:
        raise MemoryError("budget_bytes: got 2, which takes 1 bytes")

    monkeypatch.setattr(f"{ROWS}.KVPool", refuse)
    monkeypatch.setattr(f"{ROWS}.default_bytes", lambda _: 12345678)
    cache = TreeCache(tree.config, kv_bytes=kv_bytes)
    got = "10{18}, more .* pass less, or none for 12345678$"
    if kv_bytes is None:
        got = "none, which asks for 12345678, more .* pass less$"
    with pytest.raises(MemoryError, match=f"^kv_bytes: got {got}"):
        generate(tree, cache)
    assert (cache.batch_size, cache.pool, cache.tree) == (0, None, None)
    monkeypatch.undo()
    if kv_bytes is None:
        assert generate(tree, cache).shape == (2, 12)


def test_layers_of_differing_heads() -> None:
    model = tiny_model()
    model.set_attn_implementation("tts")
    config = copy.deepcopy(model.config)
    config.num_key_value_heads = 4
    model.model.layers[1].self_attn = type(model.model.layers[1].self_attn)(config, 1).eval()
    cache = cache_of(model)
    with pytest.raises(
        UnsupportedError, match=r"layer 1: got 4 KV heads of 32 channels.* expected 2 KV heads of 32"
    ):
        generate(model, cache)
    assert (cache.batch_size, cache.use().pages) == (0, 0)


def test_layers_that_run_twice() -> None:
    model = tiny_model()
    model.set_attn_implementation("tts")
    model.model.layers[2].self_attn = model.model.layers[1].self_attn
    with pytest.raises(
        UnsupportedError, match="layer: got 1, expected 2; TreeCache serves models whose layers"
    ):
        generate(model, cache_of(model))


@pytest.mark.parametrize("call", [copy.copy, copy.deepcopy, pickle.dumps])
def test_copies(tree: PreTrainedModel, call: Callable[[Any], Any]) -> None:
    with pytest.raises(UnsupportedError, match="fork its rows with batch_repeat_interleave"):
        call(cache_of(tree))


def test_rows_that_are_not_there(tree: PreTrainedModel) -> None:
    cache = cache_of(tree)
    cache.prefill(tree, IDS)
    with pytest.raises(IndexError, match="expected rows of a cache that has 2"):
        cache.reorder_cache(torch.tensor([0, 2]))
    assert cache.batch_size == 2


@pytest.mark.parametrize("version", ["4.57.6", "5.18.0", "5.25.0", "6.0"])
def test_other_versions(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(versions, "version", lambda _: version)
    with pytest.raises(VersionError, match=f"got {version}, expected 5.19 to 5.24; pip install"):
        check_version()


@pytest.mark.parametrize("version", ["5.19.0", "5.24.3", "5.22.0.dev0"])
def test_tested_versions(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(versions, "version", lambda _: version)
    check_version()


def test_tts_kernels_needs_no_transformers() -> None:
    script = """
import sys
sys.modules["transformers"] = None
import tts_kernels, importlib.metadata
def missing(name):
    raise importlib.metadata.PackageNotFoundError(name)
importlib.metadata.version = missing
try:
    import tts_kernels.integrations.transformers
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.stdout.startswith("transformers: got none, expected 5.19 to 5.24; pip install"), done.stderr
