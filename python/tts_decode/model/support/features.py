"""What a model needs from its attention; unsupported features are refused by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...errors import UnsupportedModelError
from ..transformers_output import first_line
from .named_features import attention_modules, unserved_feature, uses_attention_interface

_DTYPES = {
    "cpu": (torch.float32, torch.bfloat16),
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
}
_HARMLESS_ARGUMENTS = {
    "dropout",
    "is_causal",
    "position_ids",
    "use_cache",
    "logits_to_keep",
    "return_dict",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
}


@dataclass(frozen=True)
class AttentionCall:
    """What one attention module passed to the attention function in the probe forward."""

    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    value_dim: int
    window: int | None
    soft_cap: float | None
    causal: bool
    extra: tuple[str, ...]  # names of further arguments
    chunk: int | None = None  # tokens
    alibi: bool = False
    by_position: bool = False  # whether queries are multiplied by a position-dependent factor


@dataclass(frozen=True)
class KVShape:
    """What the KV pool must hold for one token of the model, and how many query heads read it.

    Layers with fewer KV heads store each several times, and smaller heads are padded with zeros: neither
    changes a logit or an output.
    """

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
    soft_cap: float | None,
    sinks: torch.Tensor | None,
    arguments: dict[str, Any],
) -> AttentionCall:
    """arguments: what a module passed besides query, key, value, scale, window, soft cap and sinks."""
    if sinks is not None and sinks.shape != query.shape[1:2]:
        arguments = arguments | {"sinks": sinks}
    return AttentionCall(
        num_q_heads=query.shape[1],
        num_kv_heads=key.shape[1],
        head_dim=key.shape[3],
        value_dim=value.shape[3],
        window=window,
        soft_cap=soft_cap,
        causal=arguments.get("is_causal", getattr(module, "is_causal", True)) is not False,
        extra=tuple(
            name for name, v in arguments.items() if v is not None and name not in _HARMLESS_ARGUMENTS
        ),
    )


def refuse_config(model: Any) -> None:
    """Raises UnsupportedModelError if the model's config or modules show an unsupported feature."""
    with refusing(model):
        feature = unserved_feature(model)
    if feature is not None:
        raise refusal(model, feature)


@contextmanager
def refusing(model: Any) -> Iterator[None]:
    """Turns any exception inside, except lack of memory, into an UnsupportedModelError that quotes it."""
    try:
        yield
    except (UnsupportedModelError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as cause:  # a model's code may raise anything
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be run by the tree attention path, which looks at its config and "
            f"runs it on two tokens, their ids and position_ids. Cause: {first_line(cause)}"
        ) from cause


def refuse_placement(model: Any) -> None:
    """Raises UnsupportedModelError if no kernel supports the model's device or dtype."""
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) > 1 or {device.type for device in devices} - {"cpu", "cuda"}:
        got = ", ".join(sorted(map(str, devices)))
        raise UnsupportedModelError(
            f'model must be on the CPU or on one GPU, got {got}: call model.to("cpu") or model.to("cuda")'
        )
    dtype, device = model.dtype, next(iter(devices)).type
    if dtype not in _DTYPES[device]:
        names = " or ".join(f'dtype="{str(d).removeprefix("torch.")}"' for d in _DTYPES[device])
        raise UnsupportedModelError(
            f"{type(model).__name__} has weights in {dtype}, which the KV pages on {device} do not hold: "
            f"load it with {names}"
        )


def refuse_calls(model: Any, calls: Sequence[AttentionCall], modules: Sequence[nn.Module]) -> KVShape:
    """Checks the attention calls of a probe forward; returns the KV shape that they need, one layer per call.

    modules: those that made the calls.
    """
    called = {id(module) for module in modules}
    refuse_own_attention(model, [m for m in attention_modules(model) if id(m) not in called])
    if not calls:
        raise refusal(model, "layers without attention")
    if len(called) < len(modules):
        raise refusal(model, "layers whose attention runs several times for a token")
    for call in calls:
        if call.extra:
            raise refusal(
                model, _EXTRA_FEATURES.get(call.extra[0], f"the attention argument {call.extra[0]!r}")
            )
        if not call.causal:
            raise refusal(model, "bidirectional attention")
    q_heads, kv_heads = calls[0].num_q_heads, max(call.num_kv_heads for call in calls)
    if any(call.num_q_heads != q_heads or kv_heads % call.num_kv_heads for call in calls):
        raise refusal(model, "layers of differing heads")
    largest = max(max(call.head_dim, call.value_dim) for call in calls)
    if largest > 256:
        raise refusal(model, f"head_dim {largest} (served: up to 256)")
    return KVShape(len(calls), q_heads, kv_heads, stored_head_dim(largest))


def refuse_sparse(model: Any, calls: Sequence[AttentionCall]) -> None:
    """Raises UnsupportedModelError if a page's summary does not predict what a query finds in it."""
    if any(call.alibi for call in calls):
        raise UnsupportedModelError(
            f"sparse: got a SparseConfig for {type(model).__name__}, whose ALiBi positions no page's summary "
            "knows, expected None; leave it out"
        )


def stored_head_dim(size: int) -> int:
    """Returns the channels that pages have for heads of this many."""
    return max(32, -(-size // 16) * 16)


def refuse_own_attention(model: Any, modules: Sequence[nn.Module]) -> None:
    """Raises UnsupportedModelError if a module, by its class, cannot call the attention function."""
    own = sorted({type(module).__name__ for module in modules if not uses_attention_interface(module)})
    if own:
        raise refusal(
            model,
            f"attention code of its own ({', '.join(own)}), which does not go through AttentionInterface",
        )


def refusal(model: Any, feature: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{type(model).__name__} needs {feature}, which the tree attention path does not serve"
    )


# Arguments of the attention function that indicate a feature.
_EXTRA_FEATURES = {
    "sinks": "attention sinks other than one of each head",
    "position_bias": "relative position biases",
    "indices": "sparse attention by an indexer",
    "block_indices": "sparse attention by an indexer",
    "cu_seq_lens_q": "packed variable-length attention of its own",
}
