"""Refuses unsupported features by name: models by their config, layers by their attention's arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ... import KVPool
from ...checks.pages import PACKED_HEAD_DIMS, PAGE_SIZE, PLAIN_HEAD_DIMS
from ...pool import page_bytes
from .errors import UnsupportedError, WrongCacheError

DTYPES = (torch.float32, torch.bfloat16)
SMALLEST = torch.bfloat16  # of them

_LAYER_TYPES = {"full_attention", "sliding_attention"}

# Field of a config -> the feature it indicates, in order: the first that applies is named.
_FEATURES = {
    "is_encoder_decoder": "an encoder-decoder (cross-attention)",
    "add_cross_attention": "cross-attention",
    "kv_lora_rank": "multi-head latent attention (MLA)",
    "alibi": "ALiBi positions",
    "num_kv_shared_layers": "layers that share the KV of others",
    "kv_sharing_modes": "layers that share the KV of others",
    "use_bidirectional_attention": "bidirectional attention",
    "attention_chunk_size": "chunked attention",
}

# Arguments of an attention function that change nothing here.
_HARMLESS = {
    *("position_ids", "use_cache", "sliding_window", "is_causal", "dropout", "logits_to_keep", "return_dict"),
    *("output_hidden_states", "output_router_logits", "num_items_in_batch"),
    *("tokenizer", "assistant_tokenizer"),  # of `generate`, which passes them on
}
_ARGUMENTS = {
    "sinks": "attention sinks other than one of each head",
    "position_bias": "relative position biases",
    "indices": "sparse attention by an indexer",
    "block_indices": "sparse attention by an indexer",
    "cu_seq_lens_q": "packed sequences",
    "cu_seq_lens_k": "packed sequences",
}


def refuse_config(config: Any) -> None:
    """Raises UnsupportedError for a model whose config shows an unsupported feature."""
    for name, feature in _FEATURES.items():
        if getattr(config, name, None):
            raise _refusal(config.model_type, feature)
    if others := sorted(set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES):
        raise _refusal(config.model_type, f"layers of type {', '.join(others)}")


def refuse_head_size_of(config: Any, layout: str | None) -> None:
    """Raises UnsupportedError for heads of a size that no device of this machine supports.

    layout: None: the device's.
    """
    device = torch.device("cuda" if layout is None and torch.cuda.is_available() else "cpu")
    size = getattr(config, "head_dim", None) or getattr(config, "kv_channels", None)
    hidden, heads = getattr(config, "hidden_size", None), getattr(config, "num_attention_heads", None)
    if size is None and isinstance(hidden, int) and isinstance(heads, int) and heads > 0:
        size = hidden // heads
    if isinstance(size, int):
        refuse_head_size(config.model_type, size, layout, device)


def refuse_head_size(subject: str, size: int, layout: str | None, device: torch.device) -> None:
    """Raises UnsupportedError for heads of `size` channels that no page of the layout can hold."""
    packed = layout == "packed" or (layout is None and device.type == "cpu")
    served = PACKED_HEAD_DIMS if packed else PLAIN_HEAD_DIMS
    if size not in served:
        expected = f"no multiple of {served.step} from {served.start} to {served[-1]}"
        raise _refusal(subject, f"heads of {size} channels (head_dim), {expected}")


def least_heads(config: Any) -> tuple[int, int]:
    """Returns the KV heads and their channels, or lower bounds if the config does not tell."""
    heads, width = getattr(config, "num_key_value_heads", None), getattr(config, "head_dim", None)
    return heads if isinstance(heads, int) else 1, width if isinstance(width, int) else 16


def refuse_arguments(module: nn.Module, arguments: Mapping[str, Any]) -> None:
    """Raises UnsupportedError for unsupported arguments that a layer passes to the attention function."""
    name = type(module).__name__
    if arguments.get("output_attentions"):
        raise UnsupportedError(
            'output_attentions: got True, expected False; attn_implementation="tts" has no attention weights'
        )
    if arguments.get("dropout"):
        raise UnsupportedError(f"{name}: got dropout of attention weights, expected none; call model.eval()")
    causal = arguments.get("is_causal")
    if not (getattr(module, "is_causal", True) if causal is None else causal):
        raise _refusal(name, "bidirectional attention")
    for argument, value in arguments.items():
        if value is not None and argument not in _HARMLESS and argument != "output_attentions":
            raise _refusal(name, _ARGUMENTS.get(argument, f"the attention argument {argument!r}"))


def refuse_tensors(key: torch.Tensor, value: torch.Tensor, positions: torch.Tensor | None) -> None:
    """Raises UnsupportedError for keys and values that no page can hold. positions: of their tokens."""
    if key.dtype not in DTYPES or value.dtype != key.dtype:
        raise UnsupportedError(
            f"dtype: got {key.dtype} keys and {value.dtype} values, expected torch.float32 or "
            "torch.bfloat16; load the model with dtype=torch.float32, and leave torch.autocast out"
        )
    if key.device.type not in ("cpu", "cuda"):
        raise UnsupportedError(f"device: got {key.device}, expected the CPU or a GPU of NVIDIA")
    if key.shape[:-1] != value.shape[:-1]:  # rotary embeddings of other shapes broadcast the keys
        got = "none" if positions is None else list(positions.shape)
        raise UnsupportedError(
            f"position_ids: got {got}, by which keys become {list(key.shape)} beside values "
            f"{list(value.shape)}, expected [{value.shape[0]}, {value.shape[-2]}] or [1, {value.shape[-2]}]; "
            "pass a position for each token of input_ids, or leave position_ids out"
        )
    if key.shape != value.shape:
        raise UnsupportedError(
            f"head_dim: got keys of {key.shape[-1]} channels, values of {value.shape[-1]}, expected as many"
        )
    if torch.is_grad_enabled() and (key.requires_grad or value.requires_grad):
        raise UnsupportedError(
            "model: got a forward with gradients, expected none; call it under torch.no_grad()"
        )


def refuse_other_pages(layer: int, key: torch.Tensor, pool: KVPool) -> None:
    """Raises UnsupportedError for keys [B, num_kv_heads, S, head_dim] that do not fit the pool."""
    got = key.shape[1], key.shape[3], key.dtype, key.device
    expected = pool.num_kv_heads, pool.head_dim, pool.dtype, pool.k_pages.device
    if got != expected:
        described = ["{} KV heads of {} channels, {} on {}".format(*form) for form in (got, expected)]
        raise UnsupportedError(
            f"layer {layer}: got {described[0]}, expected {described[1]}, which the cache's pages were made "
            "for; make another TreeCache for another model, dtype or device. All layers have the same pages"
        )


def refuse_less_than_a_page(
    kv_bytes: int, num_layers: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype
) -> None:
    """Raises ValueError if `kv_bytes` bytes hold no page."""
    least = page_bytes(num_layers, num_kv_heads, head_dim, PAGE_SIZE, dtype)
    if kv_bytes < least:
        raise ValueError(
            f"kv_bytes: got {kv_bytes}, expected >= {least}, one page: keys and values of {PAGE_SIZE} tokens "
            f"in {num_layers} layers of {num_kv_heads} KV heads of {head_dim} channels in {dtype}; pass some "
            "hundred pages, or leave kv_bytes out"
        )


def refuse_other_model(module: nn.Module, filled_by: nn.Module | None, columns: int) -> None:
    """Raises UnsupportedError unless the first layer's attention belongs to the model that filled the cache.

    module: that attention. filled_by: the filling model's first attention; None if it is gone.
    """
    if module is not filled_by:
        raise UnsupportedError(
            f"model: got another than the one that computed the {columns} tokens of each row which the cache "
            f"holds, seen by its first {type(module).__name__}; call cache.reset() before another model, or "
            "make a TreeCache for each"
        )


def refuse_other_rows(got: int, held: int) -> None:
    """Raises UnsupportedError for a batch whose number of rows differs from the cache's."""
    if got != held:
        raise UnsupportedError(
            f"cache: got a batch of {got} rows, but the cache holds {held}; call "
            "cache.batch_repeat_interleave(n) to have n copies of each, or cache.reset() to start over"
        )


def refuse_other_layers(module: nn.Module, num_layers: int) -> None:
    """Raises WrongCacheError for a layer of a model whose number of layers differs from the cache's."""
    got = getattr(getattr(module, "config", None), "num_hidden_layers", num_layers)
    if got != num_layers:
        raise WrongCacheError(
            f"cache: got a TreeCache of {num_layers} layers, expected {got} as the model has; make it with "
            "TreeCache(model.config)"
        )


def _refusal(subject: str, feature: str) -> UnsupportedError:
    return UnsupportedError(
        f'{subject}: got {feature}, which attn_implementation="tts" does not serve; use "sdpa" or "eager" '
        "without TreeCache"
    )
