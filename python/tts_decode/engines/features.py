"""What a model needs from its attention, and the refusal of what is not served, by the feature's name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tts_decode.errors import UnsupportedModel

_LAYER_TYPES = {"full_attention", "sliding_attention"}
_DTYPES = {
    "cpu": (torch.float32, torch.bfloat16),
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
}
_HARMLESS_ARGUMENTS = {
    "dropout",
    "is_causal",
    "position_ids",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
}


@dataclass(frozen=True)
class AttentionCall:
    """What one attention module handed to the attention function in the probe forward."""

    layer: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    value_dim: int
    window: int | None
    causal: bool
    extra: tuple[str, ...]  # names of further arguments


@dataclass(frozen=True)
class KVShape:
    """What the KV pool must hold for one token of the model, and how many query heads read it."""

    num_layers: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int


def describe_call(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    window: int | None,
    arguments: dict[str, Any],
) -> AttentionCall:
    """`arguments`: what a module handed over beside query, key, value, scale, window and soft cap."""
    return AttentionCall(
        layer=module.layer_idx,
        num_q_heads=query.shape[1],
        num_kv_heads=key.shape[1],
        head_dim=key.shape[3],
        value_dim=value.shape[3],
        window=window,
        causal=arguments.get("is_causal", getattr(module, "is_causal", True)) is not False,
        extra=tuple(
            name for name, v in arguments.items() if v is not None and name not in _HARMLESS_ARGUMENTS
        ),
    )


def refuse_config(model: Any) -> None:
    """Raises UnsupportedModel when the model's class or config names a feature that is not served."""
    config = model.config.get_text_config(decoder=True)
    for feature, has in _CONFIG_FEATURES.items():
        if has(config):
            raise refusal(model, feature)
    other = sorted(set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES)
    if other:
        raise refusal(model, f"layers of type {', '.join(other)}")
    if not getattr(model, "_supports_attention_backend", False):
        raise refusal(
            model, "attention that does not go through transformers' AttentionInterface (ALiBi, for example)"
        )


def refuse_placement(model: Any) -> None:
    """Raises UnsupportedModel when the model lies where, or in a dtype that, no kernel serves."""
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) > 1 or {device.type for device in devices} - {"cpu", "cuda"}:
        got = ", ".join(sorted(map(str, devices)))
        raise UnsupportedModel(
            f'model must be on the CPU or on one GPU, got {got}: call model.to("cpu") or model.to("cuda")'
        )
    dtype, device = model.dtype, next(iter(devices)).type
    if dtype not in _DTYPES[device]:
        names = " or ".join(f'dtype="{str(d).removeprefix("torch.")}"' for d in _DTYPES[device])
        raise UnsupportedModel(
            f"{type(model).__name__} has weights in {dtype}, which the KV pages on {device} do not hold: "
            f"load it with {names}"
        )


def refuse_calls(model: Any, calls: list[AttentionCall]) -> KVShape:
    """Checks the attention calls of a probe forward and returns the KV shape they ask for."""
    config = model.config.get_text_config(decoder=True)
    layers = config.num_hidden_layers
    if not calls:
        raise refusal(model, "attention that does not go through transformers' AttentionInterface")
    for call in calls:
        if call.extra:
            raise refusal(
                model, _EXTRA_FEATURES.get(call.extra[0], f"the attention argument {call.extra[0]!r}")
            )
        if not call.causal:
            raise refusal(model, "bidirectional attention")
        if call.value_dim != call.head_dim:
            raise refusal(model, f"differing head dims of K ({call.head_dim}) and V ({call.value_dim})")
        if call.head_dim % 16 or not 32 <= call.head_dim <= 256:
            raise refusal(model, f"head_dim {call.head_dim} (served: multiples of 16 in 32..256)")
        if call.window is None and _layer_type(config, call.layer) == "sliding_attention":
            raise refusal(
                model, "sliding-window layers that do not hand their window to the attention function"
            )
    if len({(call.num_q_heads, call.num_kv_heads, call.head_dim) for call in calls}) > 1:
        raise refusal(model, "layers of differing heads or head_dim")
    if [call.layer for call in calls] != list(range(layers)):
        raise refusal(
            model, "layers that do not run one attention each, in order (shared KV or mixed layers)"
        )
    return KVShape(layers, calls[0].num_q_heads, calls[0].num_kv_heads, calls[0].head_dim)


def _layer_type(config: Any, layer: int) -> str | None:
    types = getattr(config, "layer_types", None)
    return types[layer] if types else None


def refusal(model: Any, feature: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"{type(model).__name__} needs {feature}, which the tree attention path does not serve"
    )


def _rope(config: Any, test: Callable[[dict[str, Any]], bool]) -> bool:
    """Whether one of the config's rotary settings (one dict, or one a layer type) passes the test."""
    rope = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in rope.values() if isinstance(value, dict)]
    return any(test(parameters) for parameters in (nested or [rope]))


def _scales_by_length(rope: dict[str, Any]) -> bool:
    """Whether the rotary frequencies change with the longest text; longrope with equal lists is constant."""
    kind = rope.get("rope_type")
    return kind == "dynamic" or (kind == "longrope" and rope.get("short_factor") != rope.get("long_factor"))


def _truthy(*names: str) -> Callable[[Any], bool]:
    return lambda config: any(bool(getattr(config, name, None)) for name in names)


# In order: the first that applies is named.
_CONFIG_FEATURES: dict[str, Callable[[Any], bool]] = {
    "an encoder-decoder (cross-attention)": _truthy("is_encoder_decoder"),
    "cross-attention": _truthy("add_cross_attention", "cross_attention_layers"),
    "multi-head latent attention (MLA)": _truthy("kv_lora_rank"),
    "attention sinks": lambda config: config.model_type == "gpt_oss",
    "chunked attention": lambda config: "chunked_attention" in (getattr(config, "layer_types", None) or ()),
    "linear-attention or state-space layers": lambda config: (
        bool(
            {"linear_attention", "conv", "hybrid", "hybrid_sliding"}
            & set(getattr(config, "layer_types", None) or ())
        )
        or any(hasattr(config, name) for name in ("mamba_d_state", "mamba_d_conv", "ssm_cfg", "state_size"))
    ),
    "KV shared between layers": _truthy("num_kv_shared_layers"),
    "bidirectional attention": _truthy("use_bidirectional_attention"),
    "ALiBi positions": _truthy("alibi"),
    "multi-axis rotary positions (M-RoPE)": lambda config: _rope(
        config, lambda rope: "mrope_section" in rope
    ),
    "rotary scaling by the longest text so far (rope_type dynamic or longrope)": lambda config: _rope(
        config, _scales_by_length
    ),
}

# Arguments of the attention function that stand for a feature.
_EXTRA_FEATURES = {
    "s_aux": "attention sinks",
    "sinks": "attention sinks",
    "position_bias": "relative position biases",
    "indices": "sparse attention by an indexer",
    "block_indices": "sparse attention by an indexer",
    "cu_seq_lens_q": "packed variable-length attention of its own",
}
