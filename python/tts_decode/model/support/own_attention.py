"""Attention modules with code of their own, which do not call transformers' AttentionInterface.

For the time of a forward each gets the forward of this file, which calls an attention function instead. What
is before and after it is the module's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

# The attention function of transformers: module, query [1, heads, T, d], key and value [1, kv_heads, T, d],
# mask, and keyword arguments -> [1, T, heads, d] and weights, which are not there
Attention = Callable[..., tuple[Tensor, None]]
# Attention function, module, and the arguments of the module's forward -> [1, T, hidden] and no weights
Forward = Callable[..., tuple[Tensor, None]]


def own_attention(model: nn.Module) -> list[tuple[nn.Module, Forward]]:
    """The model's modules of the classes served here, each with the forward to put in place of its own."""
    found = []
    for module in model.modules():
        names = (cls.__name__ for cls in type(module).__mro__)
        if forward := next(filter(None, map(_FORWARDS.get, names)), None):
            found.append((module, forward))
    return found


@contextmanager
def rerouted(modules: Sequence[tuple[nn.Module, Forward]], attention: Attention) -> Iterator[None]:
    """Inside, these modules of `own_attention` call `attention`."""
    with ExitStack() as stack:
        for module, forward in modules:
            stack.callback(_set_forward, module, module.__dict__.get("forward"))
            _set_forward(module, partial(forward, attention, module))
        yield


def _set_forward(module: nn.Module, forward: Callable[..., Any] | None) -> None:
    """Sets the forward of one instance, or with None unsets it, so that it has its class's again."""
    module.__dict__.pop("forward", None)
    if forward is not None:
        module.__dict__["forward"] = forward


def _falcon(
    attention: Attention,
    module: Any,
    hidden_states: Tensor,
    alibi: Tensor | None,
    attention_mask: Tensor | None,
    *,
    position_embeddings: tuple[Tensor, Tensor],
    **_: Any,
) -> tuple[Tensor, None]:
    """For `FalconAttention` with rotary positions: one product for q, k and v, group after group of heads."""
    from transformers.models.falcon.modeling_falcon import apply_rotary_pos_emb

    heads, head_dim = module.num_heads, module.head_dim
    # `num_kv_heads` holds for the layout of these two only
    kv_heads = module.num_kv_heads if module.new_decoder_architecture or module.multi_query else heads
    groups = module.query_key_value(hidden_states).unflatten(-1, (kv_heads, heads // kv_heads + 2, head_dim))
    query, key, value = (
        part.flatten(2, 3).transpose(1, 2) for part in groups.split((heads // kv_heads, 1, 1), dim=3)
    )
    query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
    attended, _weights = attention(module, query, key, value, attention_mask, scaling=head_dim**-0.5)
    return module.dense(attended.flatten(2)), None


def _gpt_neo(attention: Attention, module: Any, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
    """For `GPTNeoSelfAttention`: logits without scale, and in local layers a window that no mask holds."""
    query, key, value = (
        projection(hidden_states).unflatten(-1, (module.num_heads, module.head_dim)).transpose(1, 2)
        for projection in (module.q_proj, module.k_proj, module.v_proj)
    )
    window = module.config.window_size if module.attention_type == "local" else None
    attended, _weights = attention(module, query, key, value, None, scaling=1.0, sliding_window=window)
    return module.resid_dropout(module.out_proj(attended.flatten(2))), None


_FORWARDS: dict[str, Forward] = {
    "FalconAttention": _falcon,
    "GPTNeoSelfAttention": _gpt_neo,
}
