"""Parts of the config that single architectures need in addition to the tables of `architectures.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tts_kernels.checks import is_integer

from .header import Header

_EXAONE_LAYERS_WITH_WINDOWS = 64  # llama.cpp uses windows in the 32B model, identified by its layers


def of_architecture(header: Header, head_dim: int, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns attributes of the config to add to, or replace, `attributes`.

    Raises ModelLoadError for a key that is not supported.
    """
    own = _OWN.get(header.name)
    return {} if own is None else own(header, head_dim, attributes)


def _phi3(header: Header, _head_dim: int, attributes: Mapping[str, Any]) -> dict[str, Any]:
    rope = attributes["rope_parameters"]
    context = rope.get("original_max_position_embeddings", attributes["max_position_embeddings"])
    window = header.integer("attention.sliding_window", 0, low=0)
    return {"sliding_window": window or None, "original_max_position_embeddings": context}


def _stablelm(header: Header, _head_dim: int, _attributes: Mapping[str, Any]) -> dict[str, Any]:
    # The parallel form has one norm per layer, so the file has no norm before the feed-forward.
    parallel = "blk.0.ffn_norm.weight" not in header.tensors
    if header.flag("use_parallel_residual", parallel) != parallel:
        raise header.refuse(
            header.path("use_parallel_residual"), f"{parallel}, as the norms in the file tell"
        )
    return {"use_parallel_residual": parallel}


def _gemma(header: Header, head_dim: int, attributes: Mapping[str, Any]) -> dict[str, Any]:
    # The 27B models scale by the width of the residual stream; llama.cpp identifies them by their layers.
    largest = attributes["num_hidden_layers"] == {"gemma2": 46, "gemma3": 62}[header.name]
    width = attributes["hidden_size"] // attributes["num_attention_heads"]
    gemma: dict[str, Any] = {"query_pre_attn_scalar": width if largest else head_dim}
    if header.name == "gemma3":
        base = header.number("rope.freq_base_swa", 10000.0)
        gemma["rope_parameters"] = {
            "full_attention": attributes["rope_parameters"],
            "sliding_attention": {"rope_type": "default", "rope_theta": base},
        }
    return gemma


def _mistral3(header: Header, _head_dim: int, _attributes: Mapping[str, Any]) -> dict[str, Any]:
    if header.text("rope.scaling.type", "none") == "yarn":  # llama.cpp removes its magnitude again here
        raise header.refuse(header.path("rope.scaling.type"), "no YaRN in a file of this architecture")
    return {}


def _granite(header: Header, head_dim: int, _attributes: Mapping[str, Any]) -> dict[str, Any]:
    # 0 means the factor's default.
    scale = header.number("attention.scale", 0.0, zero=True)
    return {
        "attention_multiplier": scale or head_dim**-0.5,
        "embedding_multiplier": header.number("embedding_scale", 0.0, zero=True) or 1.0,
        "residual_multiplier": header.number("residual_scale", 0.0, zero=True) or 1.0,
    }


def _olmo2(header: Header, _head_dim: int, attributes: Mapping[str, Any]) -> dict[str, Any]:
    base = header.number("rope.freq_base", 10000.0)
    _refuse_other_base(header, base)
    if not header.integer("attention.sliding_window", 0, low=0):
        return {}
    return {
        "model_type": "olmo3",
        **_windows(header, attributes, 4),
        "rope_parameters": {  # layers with a window are not scaled
            "full_attention": attributes["rope_parameters"],
            "sliding_attention": {"rope_type": "default", "rope_theta": base},
        },
    }


def _gpt_oss(header: Header, _head_dim: int, attributes: Mapping[str, Any]) -> dict[str, Any]:
    _refuse_other_base(header, header.number("rope.freq_base", 10000.0))
    width = attributes["intermediate_size"]
    if header.integer("feed_forward_length", width) != width:
        raise header.refuse(header.path("feed_forward_length"), f"{width}, that of the experts")
    return _windows(header, attributes, 2)


def _exaone4(header: Header, _head_dim: int, attributes: Mapping[str, Any]) -> dict[str, Any]:
    if attributes["num_hidden_layers"] == _EXAONE_LAYERS_WITH_WINDOWS:
        return _windows(header, attributes, 4, window=4096)
    if header.integer("attention.sliding_window", 0, low=0):
        raise header.refuse(
            header.path("attention.sliding_window"),
            f"none in a model that has not {_EXAONE_LAYERS_WITH_WINDOWS} layers",
        )
    return {"sliding_window": None, "layer_types": ["full_attention"] * attributes["num_hidden_layers"]}


def _cohere2(header: Header, _head_dim: int, attributes: Mapping[str, Any]) -> dict[str, Any]:
    return _windows(header, attributes, 4)


def _windows(
    header: Header, attributes: Mapping[str, Any], period: int, window: int | None = None
) -> dict[str, Any]:
    """Returns windows in all layers but every `period`-th, or as in the file. window: default of its size."""
    layers = attributes["num_hidden_layers"]
    pattern: Any = header.metadata.get(header.path("attention.sliding_window_pattern"), period)
    if is_integer(pattern) and pattern >= 0:  # 0: in all layers
        slides = [pattern == 0 or layer % pattern < pattern - 1 for layer in range(layers)]
    elif isinstance(pattern, list) and len(pattern) == layers and all(type(one) is bool for one in pattern):
        slides = pattern
    else:
        raise header.refuse(
            header.path("attention.sliding_window_pattern"), f"a period, or true or false for {layers} layers"
        )
    return {
        "sliding_window": header.integer("attention.sliding_window", window),
        "layer_types": ["sliding_attention" if one else "full_attention" for one in slides],
    }


def _refuse_other_base(header: Header, base: float) -> None:
    if header.number("rope.freq_base_swa", base) != base:
        raise header.refuse(header.path("rope.freq_base_swa"), f"{base:.6g}, that of all layers")


_OWN: Mapping[str, Callable[[Header, int, Mapping[str, Any]], dict[str, Any]]] = {
    "phi3": _phi3,
    "stablelm": _stablelm,
    "gemma2": _gemma,
    "gemma3": _gemma,
    "mistral3": _mistral3,
    "granite": _granite,
    "olmo2": _olmo2,
    "gpt-oss": _gpt_oss,
    "exaone4": _exaone4,
    "cohere2": _cohere2,
}
