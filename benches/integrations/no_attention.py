"""The floor of an attention bench: a model whose attention does nothing, over a cache that keeps nothing.

Only the model's other layers and `generate` itself remain, which no attention or cache makes faster.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin

NAME = "none"


def register() -> None:
    """Makes attn_implementation="none" known to transformers."""
    AttentionInterface.register(NAME, _zeros)
    AttentionMaskInterface.register(NAME, lambda **_: None)


def no_cache(config: PreTrainedConfig) -> Cache:
    return Cache(layers=[_Length() for _ in range(config.num_hidden_layers)])


def _zeros(_: Any, query: Tensor, *__: Any, **___: Any) -> tuple[Tensor, None]:
    """[B, num_q_heads, S, head_dim] -> [B, S, num_q_heads, head_dim]"""
    batch, heads, columns, channels = query.shape
    return torch.zeros((batch, columns, heads, channels), dtype=query.dtype, device=query.device), None


class _Length(CacheLayerMixin):
    """Counts tokens."""

    is_croppable = True
    is_sliding = False
    _tokens = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        pass

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self._tokens += key_states.shape[2]
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._tokens + query_length, 0

    def get_seq_length(self) -> int:
        return self._tokens

    def get_max_length(self) -> int:
        return -1

    def reorder_cache(self, beam_idx: Tensor) -> None:
        pass

    def batch_repeat_interleave(self, repeats: int) -> None:
        pass
