"""attn_implementation="tts": attention over the pages of a `TreeCache`."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from .eager import eager
from .errors import UnsupportedError, WrongCacheError
from .forwards import watch_forwards
from .generating import watch_generate
from .masks import StepMask, tree_mask
from .new_kv import NewKV
from .origins import Origin
from .support import refuse_arguments, refuse_other_layers

NAME = "tts"


def register() -> None:
    """Makes attn_implementation="tts" known to transformers. Repeated calls are harmless.

    From then on, models tell a TreeCache which tokens they compute, and `generate` checks a TreeCache: that
    its arguments are supported, and that its prompts match the content of the cache.
    """
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, tree_mask)  # without one transformers would pass no mask at all
    watch_forwards()
    watch_generate()


@eager
def attention(
    module: nn.Module,
    query: Tensor,
    key: NewKV,
    value: NewKV,
    attention_mask: StepMask | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **arguments: Any,
) -> tuple[Tensor, None]:
    """The attention function for transformers: stores the new keys and values, then attends to all.

    query [B, num_q_heads, S, head_dim] -> [B, S, num_q_heads, head_dim]; key is value, from
    `TreeCache.update`. s_aux: sinks [num_q_heads]. The mask's window counts; as with "sdpa", `sliding_window`
    alone changes nothing.
    """
    if not isinstance(key, NewKV) or value is not key:
        if arguments.get("use_cache") is False:
            raise WrongCacheError(
                f"use_cache: {type(module).__name__} got False and no TreeCache, expected True and one with "
                'attn_implementation="tts"; leave use_cache out and pass cache=TreeCache(model.config) to '
                'generate, or call model.set_attn_implementation("sdpa")'
            )
        raise WrongCacheError(
            f'cache: {type(module).__name__} runs with attn_implementation="tts", but got no TreeCache, or '
            "changed what it returned; pass cache=TreeCache(model.config) to generate, or call "
            'model.set_attn_implementation("sdpa"), as for a model that is the assistant of another'
        )
    if not isinstance(attention_mask, StepMask):
        got = "none" if attention_mask is None else f"a {type(attention_mask).__name__}"
        raise UnsupportedError(
            f"attention_mask: {type(module).__name__} got {got} not made by transformers' mask functions, "
            "expected one of two dimensions [batch, columns], or none, given to the model"
        )
    if s_aux is not None and s_aux.shape != query.shape[1:2]:
        arguments["sinks"] = s_aux
    refuse_arguments(module, arguments)
    if key.layer == 0:
        refuse_other_layers(module, key.rows.num_layers)
    out = key.rows.attend(
        key.layer,
        query,
        key.keys,
        key.values,
        attention_mask,
        Origin(module, arguments.get("position_ids")),
        scale=scaling,
        soft_cap=softcap,
        sinks=None if s_aux is None else s_aux.float(),
    )
    return out, None
