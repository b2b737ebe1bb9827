"""Settings of a config that act on long texts only, where no short comparison sees them, and those served."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ...errors import UnsupportedModelError
from .features import refusal

# Names of such settings, known and to come.
_ACTS_LATE = re.compile(
    "window|chunk|floor|temperature_tuning|log_scaling|scaling_beta|index_topk|indexer|topk_block|block_size|"
    "dilat|max_distance|bucket|sparse_attention|long_factor|local_attention"
)
# By what each of these is right at every length; tests/decode/test_self_check.py has each at low limits.
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
    "attn_temperature_tuning": "attention that counts its rows is refused",
    "floor_scale": "of attn_temperature_tuning",
    "mamba_chunk_size": "of layers that are refused where a model has them",
    "window_size": "of GPT-Neo, whose local layers hand it to the attention function (own_attention.py)",
    "llama_4_scaling_beta": "goes by the positions that the model is given",
    **dict.fromkeys(("index_block_size", "index_topk_blocks"), "of layers whose type is refused"),
    "chunk_size_feed_forward": "splits a product, whose rows do not depend on one another",
}
# Whose frequencies do not depend on the text; of longrope only what `refuse_config` leaves is.
_ROPE_TYPES = ("default", "linear", "llama3", "yarn", "longrope")


def refuse_length_settings(model: Any) -> None:
    """Raises UnsupportedModelError where a setting that acts on long texts only is not known to be served."""
    config = model.config.get_text_config(decoder=True)
    rope = getattr(config, "rope_parameters", None) or {}
    by_layer = [value for value in rope.values() if isinstance(value, Mapping)]
    for settings in [vars(config), *(by_layer or [rope])]:
        for name, value in _late(settings):
            if name not in _SERVED:
                raise UnsupportedModelError(
                    f"{type(model).__name__} has {name} = {value} in its config, which may act on texts "
                    "longer than those of the self-check and is not known to be served: pass check=False if "
                    "it does not"
                )
    for parameters in by_layer or [rope]:
        kind = parameters.get("rope_type", "default")
        if kind not in _ROPE_TYPES:
            raise refusal(model, f"rotary scaling of type {kind}")


def _late(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if (
            value
            and not name.startswith("_")
            and isinstance(value, (bool, int, float, str))
            and _ACTS_LATE.search(name)
        ):
            yield name, value
