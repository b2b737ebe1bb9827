"""Config settings that only affect long texts, where a short comparison cannot see them; those supported."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ...errors import UnsupportedModelError
from .features import refusal

# Names of such settings, known and future.
_ACTS_LATE = re.compile(
    "window|chunk|floor|temperature_tuning|log_scaling|scaling_beta|index_topk|indexer|topk_block|block_size|"
    "dilat|max_distance|bucket|sparse_attention|long_factor|local_attention"
)
# Why each of these is right at every length; tests/decode/test_self_check.py tests each at low limits.
_SERVED = {
    **dict.fromkeys(
        ("sliding_window", "local_attention", "attention_chunk_size"), "masks are asked for at all lengths"
    ),
    **dict.fromkeys(
        (
            "use_sliding_window",
            "max_window_layers",
            "sliding_window_pattern",
            "prefix_dense_sliding_window_pattern",
        ),
        "choose the layers with a window",
    ),
    "attn_temperature_tuning": "of Llama 4, by positions (own_forwards.py); others that count are refused",
    "floor_scale": "of attn_temperature_tuning",
    "mamba_chunk_size": "of layers that are refused where a model has them",
    "window_size": "of GPT-Neo, whose local layers hand it to the attention function (own_forwards.py)",
    "llama_4_scaling_beta": "goes by the positions that the model is given",
    **dict.fromkeys(("index_block_size", "index_topk_blocks"), "of layers whose type is refused"),
    "chunk_size_feed_forward": "splits a product, whose rows do not depend on one another",
}
# Kinds whose frequencies do not depend on the text, or only beyond `text_limit`.
_ROPE_TYPES = ("default", "linear", "llama3", "yarn", "longrope", "dynamic")


class TextLimit(NamedTuple):
    """Maximum tokens of a text, and the kind of rotary scaling if that is the reason."""

    tokens: int | None
    kind: str = ""


def text_limit(config: Any) -> TextLimit:
    """Returns how many positions a model has with constant frequencies of its rotary positions.

    Frequencies of type dynamic and longrope change in longer texts, where transformers rotates new keys with
    them beside cached keys rotated with the old ones. In a tree a branch's numbers would then depend on how
    its text was computed: in which chunks, and with which of its pages found in other branches.
    """
    positions = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)
    limits = [TextLimit(positions)] if positions is not None else []
    for parameters in _rotary_parameters(config):
        kind = parameters.get("rope_type")
        if kind == "dynamic":  # at exactly this length it may keep the frequencies of an earlier, longer text
            limits.append(TextLimit(config.max_position_embeddings - 1, kind))
        elif kind == "longrope" and parameters.get("short_factor") != parameters.get("long_factor"):
            limits.append(TextLimit(parameters["original_max_position_embeddings"], kind))
    return min(limits, default=TextLimit(None))


def refuse_length_settings(model: Any) -> None:
    """Raises UnsupportedModelError for an unknown setting that only affects long texts."""
    config = model.config.get_text_config(decoder=True)
    rotary = _rotary_parameters(config)
    for settings in [vars(config), *rotary]:
        for name, value in _late(settings):
            if name not in _SERVED:
                raise UnsupportedModelError(
                    f"{type(model).__name__} has {name} = {value} in its config, which may act on texts "
                    "longer than those of the self-check and is not known to be served: pass check=False if "
                    "it does not"
                )
    for parameters in rotary:
        kind = parameters.get("rope_type", "default")
        if kind not in _ROPE_TYPES:
            raise refusal(model, f"rotary scaling of type {kind}")


def _rotary_parameters(config: Any) -> list[Mapping[str, Any]]:
    """Returns one entry for the model, or one per type of its layers."""
    rope = getattr(config, "rope_parameters", None) or {}
    return [value for value in rope.values() if isinstance(value, Mapping)] or [rope]


def _late(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if (
            value
            and not name.startswith("_")
            and isinstance(value, (bool, int, float, str))
            and _ACTS_LATE.search(name)
        ):
            yield name, value
