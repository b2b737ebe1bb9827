"""Heads that pages hold with zeros behind them, or several times: K and V of differing sizes, odd sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from checked_models import DECODER_SHAPE, largest_difference, made, serve
from tiny_models import VOCAB
from tts_decode import SparseConfig, UnsupportedModelError
from tts_decode.model.families.conditions import why_general
from tts_decode.model.hf import HFEngine
from tts_decode.model.shape import shape_of_config

pytestmark = pytest.mark.usefixtures("one_thread")


def mimo() -> Any:
    """K of 32 channels and V of 16; windows with sinks and twice the KV heads in one layer."""
    return hf.MiMoV2FlashConfig(
        **DECODER_SHAPE | {"num_key_value_heads": 1, "num_attention_heads": 4},
        v_head_dim=16,
        layer_types=["full_attention", "sliding_attention"],
        sliding_window=9,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
    )


def llama(head_dim: int) -> Callable[[], Any]:
    return lambda: hf.LlamaConfig(**DECODER_SHAPE | {"head_dim": head_dim})


# With the KV heads and channels of the pages
MODELS: dict[str, tuple[Callable[[], Any], tuple[int, int]]] = {
    "K and V differ": (mimo, (2, 32)),
    "8": (llama(8), (1, 32)),
    "24": (llama(24), (1, 32)),
    "100": (llama(100), (1, 112)),
    "20, not rotated": (lambda: hf.GPT2Config(vocab_size=VOCAB, n_embd=80, n_layer=2, n_head=4), (4, 32)),
}


@pytest.mark.parametrize("name", MODELS)
def test_equal_to_the_models_own_forward(name: str) -> None:
    config, pages = MODELS[name]
    served = serve(made(config()))
    kv_shape = served.runtime.engine.kv_shape
    assert (kv_shape.num_kv_heads, kv_shape.head_dim) == pages
    assert served.runtime.engine.packed is None
    assert largest_difference(served) < 1e-3


SPARSE = SparseConfig(budget=10**6, dense_layers=0, prompts=True)


@pytest.mark.parametrize("options", [{"track_mass": True}, {"sparse": SPARSE}], ids=["masses", "sparse"])
def test_masses_and_sparse_attention(options: dict[str, Any]) -> None:
    assert largest_difference(serve(made(mimo()), **options)) < 1e-3


def test_sizes_that_pages_hold_run_packed() -> None:
    assert why_general(made(llama(48)())) is None
    assert why_general(made(llama(100)())) == "heads of 100 channels"


def test_the_shape_of_a_config_has_the_channels_of_pages() -> None:
    model = made(llama(100)())
    assert HFEngine(model).shape == shape_of_config(model.config, torch.float32)


def test_larger_heads_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedModelError, match=r"head_dim 272 \(served: up to 256\)"):
        serve(made(llama(272)()))
