"""Forwards of attention modules, by class, that call an attention function instead of their own code."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

# The attention function of transformers: module, query [1, heads, T, d], key and value [1, kv_heads, T, d],
# mask, and keyword arguments -> [1, T, heads, d] and weights, which are None
Attention = Callable[..., tuple[Tensor, None]]
# Attention function, module, and the arguments of the module's forward -> [1, T, hidden] and no weights
Forward = Callable[..., tuple[Tensor, None]]


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
    """For `FalconAttention` with rotary positions: one product for q, k and v, grouped by heads."""
    from transformers.models.falcon.modeling_falcon import apply_rotary_pos_emb

    heads, head_dim = module.num_heads, module.head_dim
    # `num_kv_heads` is valid for the layout of these two only
    kv_heads = module.num_kv_heads if module.new_decoder_architecture or module.multi_query else heads
    groups = module.query_key_value(hidden_states).unflatten(-1, (kv_heads, heads // kv_heads + 2, head_dim))
    query, key, value = (
        part.flatten(2, 3).transpose(1, 2) for part in groups.split((heads // kv_heads, 1, 1), dim=3)
    )
    query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
    attended, _weights = attention(module, query, key, value, attention_mask, scaling=head_dim**-0.5)
    return module.dense(attended.flatten(2)), None


def _gpt_neo(attention: Attention, module: Any, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
    """For `GPTNeoSelfAttention`: unscaled logits, and in local layers a window that is in no mask."""
    query, key, value = (
        projection(hidden_states).unflatten(-1, (module.num_heads, module.head_dim)).transpose(1, 2)
        for projection in (module.q_proj, module.k_proj, module.v_proj)
    )
    window = module.config.window_size if module.attention_type == "local" else None
    attended, _weights = attention(module, query, key, value, None, scaling=1.0, sliding_window=window)
    return module.resid_dropout(module.out_proj(attended.flatten(2))), None


def _bloom(
    attention: Attention,
    module: Any,
    hidden_states: Tensor,
    residual: Tensor,
    *,
    attention_mask: Tensor | None,
    **_: Any,
) -> tuple[Tensor, None]:
    """For `BloomAttention`: ALiBi, and one product for q, k and v, grouped by head. It adds the residual."""
    heads, head_dim = module.num_heads, module.head_dim
    query, key, value = (
        part.transpose(1, 2)
        for part in module.query_key_value(hidden_states).unflatten(-1, (heads, 3, head_dim)).unbind(-2)
    )
    attended, _weights = attention(
        module,
        query,
        key,
        value,
        attention_mask,
        scaling=module.inv_norm_factor,
        alibi_slopes=_bloom_slopes(heads, hidden_states.device),
    )
    return module.dense(attended.flatten(2)) + residual, None


def _mpt(attention: Attention, module: Any, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
    """For `MptAttention`: ALiBi, whose slopes follow from the number of heads alone.

    One product computes q, k and v, concatenated. Its mask is a copy of the causal one that its model
    requests.
    """
    qkv = module.Wqkv(hidden_states)
    if module.clip_qkv:
        qkv = qkv.clamp(min=-module.clip_qkv, max=module.clip_qkv)
    query, key, value = (
        part.unflatten(-1, (module.n_heads, module.head_dim)).transpose(1, 2) for part in qkv.chunk(3, dim=-1)
    )
    attended, _weights = attention(
        module,
        query,
        key,
        value,
        None,
        scaling=module.softmax_scale,
        alibi_slopes=_mpt_slopes(module.n_heads, qkv.device),
    )
    return module.out_proj(attended.flatten(2)), None


def _llama4(
    attention: Attention,
    module: Any,
    hidden_states: Tensor,
    position_embeddings: Tensor,
    attention_mask: Tensor | None,
    *_: Any,
    **__: Any,
) -> tuple[Tensor, None]:
    """For `Llama4TextAttention`: chunks in its layers of that type, and norms of q and k after the rotation.

    In layers without rotation, queries grow with their position, which the module counts by its KV cache.
    """
    from transformers.models.llama4.modeling_llama4 import apply_rotary_emb

    query, key, value = (
        projection(hidden_states).unflatten(-1, (-1, module.head_dim))
        for projection in (module.q_proj, module.k_proj, module.v_proj)
    )
    if module.use_rope:
        query, key = apply_rotary_emb(query, key, position_embeddings)
    if hasattr(module, "qk_norm"):
        query, key = module.qk_norm(query), module.qk_norm(key)
    config = module.config
    in_chunks = config.layer_types[module.layer_idx] == "chunked_attention"
    attended, _weights = attention(
        module,
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        attention_mask,
        scaling=module.scaling,
        attention_chunk=config.attention_chunk_size if in_chunks else None,
        query_factors=(
            _growth(module.floor_scale, module.attn_scale)
            if module.attn_temperature_tuning and not module.use_rope
            else None
        ),
    )
    return module.o_proj(attended.flatten(2)), None


@cache
def _bloom_slopes(heads: int, device: torch.device) -> Tensor:
    """float32 [heads], from the biases of two tokens."""
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    with torch.inference_mode(False):
        two_tokens = torch.ones((1, 2), dtype=torch.long, device=device)
        biases: Tensor = build_alibi_tensor(two_tokens, heads, torch.float32)
        return (biases[:, 0, 1] - biases[:, 0, 0]).contiguous()


@cache
def _mpt_slopes(heads: int, device: torch.device) -> Tensor:
    """float32 [heads], from the biases of two tokens."""
    from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

    with torch.inference_mode(False):
        biases: Tensor = build_mpt_alibi_tensor(heads, 2, device=device)
        return (biases[:, 0, 1] - biases[:, 0, 0]).contiguous()


def _growth(floor_scale: int, attn_scale: float) -> Callable[[Tensor], Tensor]:
    """Llama 4's factors of queries at positions [T] (arXiv 2501.19399)."""

    def factors(positions: Tensor) -> Tensor:
        return torch.log1p(((positions.float() + 1.0) / floor_scale).floor()) * attn_scale + 1.0

    return factors


FORWARDS: dict[str, Forward] = {
    "BloomAttention": _bloom,
    "FalconAttention": _falcon,
    "GPTNeoSelfAttention": _gpt_neo,
    "Llama4TextAttention": _llama4,
    "MptAttention": _mpt,
}
# The method of a decoder of text that makes biases for a number of tokens, which these forwards do without.
BIASES = {"BloomModel": "build_alibi_tensor", "MptModel": "build_mpt_alibi_tensor"}
