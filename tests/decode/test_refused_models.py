"""Models that the self-check refuses, and those near them that are served at all lengths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from checked_models import DECODER_SHAPE, SHAPE, largest_difference, made, serve
from tiny_models import tiny_model
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaAttention
from tts_decode import UnsupportedModelError

from benches.tiny_architectures import tiny_model as drawn_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("randomised", [True, False], ids=["trained", "initial"])
def test_doge_is_refused_also_while_its_mask_is_still_nothing(randomised: bool) -> None:
    """Its attention builds a mask from `A`, which begins as 0."""
    model = made(hf.DogeConfig(**DECODER_SHAPE, keep_window_size=2048), randomised=randomised)
    assert randomised or not model.model.layers[0].self_attn.A.any()
    with pytest.raises(UnsupportedModelError, match="DogeForCausalLM needs an attention mask of its own"):
        serve(model)


_ROBERTAS = (
    hf.RobertaConfig,
    hf.XLMRobertaConfig,
    hf.CamembertConfig,
    hf.Data2VecTextConfig,
    hf.RobertaPreLayerNormConfig,
    hf.XLMRobertaXLConfig,
    lambda **o: hf.XmodConfig(**o, languages=["en"], default_language="en"),
)


@pytest.mark.parametrize("config", _ROBERTAS)
@pytest.mark.parametrize("head", [True, False])
def test_positions_that_begin_elsewhere_are_refused(config: Callable[..., Any], head: bool) -> None:
    model = made(config(**SHAPE, max_position_embeddings=130, is_decoder=True))
    with pytest.raises(UnsupportedModelError, match=r"the input of layer 0.*positions may not begin at 0"):
        serve(model if head else model.base_model)


def test_bert_whose_positions_begin_at_0_is_served() -> None:
    served = serve(made(hf.BertConfig(**SHAPE, max_position_embeddings=130, is_decoder=True)))
    assert served.self_check is not None
    assert largest_difference(served) < 1e-3


class Counting(LlamaAttention):
    """Scales its input by the row from `floor` on, as Llama 4 does its queries."""

    floor = 4

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        rows = torch.arange(hidden_states.shape[1])
        factors = 1 + torch.log1p(torch.floor((rows + 1) / self.floor))
        return super().forward(hidden_states * factors[:, None], *args, **kwargs)


@pytest.mark.parametrize("floor", [4, 8192])
def test_attention_whose_scale_goes_by_the_row_is_refused(floor: int, monkeypatch: Any) -> None:
    """At 8192 the scale is 1 in all that a short forward sees."""
    monkeypatch.setattr(Counting, "floor", floor)
    model = tiny_model()
    model.model.layers[1].self_attn.__class__ = Counting
    with pytest.raises(UnsupportedModelError, match=r"(counts its rows itself|does not agree)"):
        serve(model, pack_weights=False)


class OwnMask(LlamaAttention):
    """Adds biases by distance to the mask that it gets, as ALiBi does."""

    def forward(self, hidden_states: Tensor, *args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
        rows = torch.arange(hidden_states.shape[1])
        bias = (rows - rows[:, None]).clamp(max=0) / 8.0
        mask = torch.where(rows <= rows[:, None], bias, float("-inf"))[None, None]
        return super().forward(hidden_states, *args, attention_mask=mask, **kwargs)


def test_a_mask_of_its_own_is_refused() -> None:
    model = tiny_model()
    model.model.layers[2].self_attn.__class__ = OwnMask
    with pytest.raises(UnsupportedModelError, match="an attention mask of its own"):
        serve(model)


def test_a_mask_that_comes_later_is_refused_too() -> None:
    served = serve(tiny_model(), pack_weights=False)
    served.model.model.layers[2].self_attn.__class__ = OwnMask
    with pytest.raises(UnsupportedModelError, match="an attention mask of its own"):
        served.run(served.root([1, 2, 3]))


class Shifted(nn.Module):
    """An MLP that mixes each token with the one before it, as token shifts and short convolutions do."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x + 0.1 * nn.functional.pad(x, (0, 0, 1, -1)))


def test_what_looks_at_other_tokens_beside_attention_is_refused() -> None:
    model = tiny_model()
    model.model.layers[1].mlp = Shifted(model.model.layers[1].mlp)
    with pytest.raises(UnsupportedModelError, match=r"layer 1, at position .*looks at other tokens"):
        serve(model, pack_weights=False)


def test_windows_that_do_not_reach_the_attention_function_are_refused() -> None:
    """Phi-MoE masks by its window, which is longer than the texts of the check, and hands it to nobody."""
    config = hf.PhimoeConfig(**DECODER_SHAPE, sliding_window=100, num_local_experts=2, num_experts_per_tok=1)
    with pytest.raises(UnsupportedModelError, match="a token does not see all before it"):
        serve(made(config))


def test_settings_of_long_texts_that_nobody_knows_are_refused_by_name() -> None:
    config = hf.LlamaConfig(**DECODER_SHAPE, attention_floor=8192)
    model = made(config)
    with pytest.raises(UnsupportedModelError, match=r"attention_floor = 8192 in its config.*check=False"):
        serve(model)
    assert serve(model, check=False).self_check is None


def test_other_kinds_of_rotary_scaling_are_refused_by_name() -> None:
    model = made(hf.LlamaConfig(**DECODER_SHAPE))
    model.config.rope_parameters["rope_type"] = "stretched"
    with pytest.raises(UnsupportedModelError, match="rotary scaling of type stretched"):
        serve(model)


_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
_LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LATE: dict[str, Callable[[], Any]] = {
    "sliding_window": lambda: hf.MistralConfig(**DECODER_SHAPE, sliding_window=4),
    "sliding_window_pattern": lambda: hf.Gemma3TextConfig(
        **DECODER_SHAPE, sliding_window=5, sliding_window_pattern=2, query_pre_attn_scalar=32
    ),
    "max_window_layers": lambda: hf.Qwen2Config(
        **DECODER_SHAPE, use_sliding_window=True, sliding_window=6, max_window_layers=1
    ),
    "local_attention": lambda: hf.ModernBertDecoderConfig(**SHAPE | {"bos_token_id": 2}, local_attention=12),
    "llama_4_scaling_beta": lambda: hf.Ministral3Config(
        **DECODER_SHAPE, rope_parameters=_YARN | {"rope_theta": 1e4, "llama_4_scaling_beta": 0.5}
    ),
    "linear": lambda: hf.LlamaConfig(
        **DECODER_SHAPE, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
    ),
    "yarn": lambda: hf.LlamaConfig(**DECODER_SHAPE, rope_parameters=_YARN | {"rope_theta": 1e4}),
    "llama3": lambda: hf.LlamaConfig(
        **DECODER_SHAPE,
        rope_parameters=_LLAMA3 | {"factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 32},
    ),
    "chunk_size_feed_forward": lambda: hf.BertConfig(
        **SHAPE, max_position_embeddings=130, is_decoder=True, chunk_size_feed_forward=1
    ),
}


@pytest.mark.parametrize("setting", _LATE)
def test_what_is_served_at_all_lengths_is_right_at_low_limits(setting: str) -> None:
    assert largest_difference(serve(made(_LATE[setting]()))) < 1e-3


@pytest.mark.parametrize("model_type", ["cohere2_moe", "gpt_neo"])
def test_windows_of_other_names_are_right_beyond_them(model_type: str) -> None:
    """`prefix_dense_sliding_window_pattern` and `window_size`, with windows of 9 tokens."""
    assert largest_difference(serve(drawn_model(model_type))) < 1e-3
