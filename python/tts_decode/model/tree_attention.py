"""The attention function that models of transformers call: attention over the tree's pages.

It and the mask function are registered under one name. `HFEngine` switches a model to that name only during a
forward, so `model.generate` keeps working on the same object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from tts_kernels import DevicePlan, KVPool, Selection, TreePlan

from .support.features import AttentionCall, describe_call, refusal
from .support.masks import asked_mask, is_view_of

NAME = "tts_tree"  # of the attention implementation


@dataclass
class PageMasses:
    """Collects how each token's attention is distributed over the pages of its path, layer by layer."""

    total: Tensor | float = 0.0  # float32 [T, P], summed over layers
    layers: int = 0

    def add(self, mass: Tensor) -> None:
        """Adds a layer's mass: float32 [num_kv_heads, T, P]; each row sums to 1, minus the share of sinks."""
        self.total = self.total + mass.mean(0)
        self.layers += 1

    def mean(self) -> Tensor:
        return torch.as_tensor(self.total) / self.layers


class PageChoice(Protocol):
    """Called by a forward, layer by layer: which pages its queries read."""

    def select(self, layer: int, pool: KVPool, q: Tensor, scale: float | None) -> Selection | None:
        """Chooses for queries [T, num_q_heads, head_dim], whose keys are in the pool; None: they read all."""


@dataclass(frozen=True)
class StepContext:
    """What the attention layers of one forward need."""

    pool: KVPool
    slots: Tensor  # int32 [T], where each new token's K and V go
    plan: TreePlan | DevicePlan
    masses: PageMasses | None = None  # where they are wanted
    sparse: PageChoice | None = None  # None: everything is read


@dataclass
class Probe:
    """Replaces `StepContext` in the one forward at load that records each layer's requirements."""

    calls: list[AttentionCall] = field(default_factory=list)
    modules: list[torch.nn.Module] = field(default_factory=list)  # that made the calls
    ran: list[torch.nn.Module] = field(default_factory=list)  # of those that are watched
    masks: list[Tensor | None] = field(default_factory=list)


@dataclass
class _Forward:
    """A running forward."""

    context: StepContext | Probe
    positions: Tensor  # int64 [T]
    calls: int = 0  # of attention so far; a call's number is its layer of the KV pool


# The attention function finds it here, because not every model passes keyword arguments through to it.
_forward: ContextVar[_Forward | None] = ContextVar("forward of a TreeDecoder", default=None)


@contextmanager
def forward_under_way(context: StepContext | Probe, positions: Tensor, layer: int = 0) -> Iterator[None]:
    """Inside, `tree_attention` serves this forward; its first call is for this layer of the pool.

    positions: int64 [T], of the tokens.
    """
    token = _forward.set(_Forward(context, positions, layer))
    try:
        yield
    finally:
        _forward.reset(token)


def tree_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    attention_chunk: int | None = None,
    query_factors: Callable[[Tensor], Tensor] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function for transformers.

    query [1, heads, T, d], key and value [1, kv_heads, T, d] -> [1, T, heads, d]. s_aux: sinks [heads].

    The next three come from modules of `own_attention` only. alibi_slopes: [heads]. attention_chunk: tokens.
    query_factors: maps positions int64 [T] to factors of the queries there, float [T].
    """
    forward = _forward.get()
    if forward is None:
        raise RuntimeError(
            f'{type(module).__name__} was called outside a decoder: the attention implementation "{NAME}" '
            "runs under TreeDecoder only; choose another with model.set_attn_implementation"
        )
    layer, context = forward.calls, forward.context
    forward.calls += 1
    if isinstance(context, Probe):
        context.modules.append(module)
        context.masks.append(attention_mask)
        call = describe_call(module, query, key, value, sliding_window, softcap, s_aux, kwargs)
        context.calls.append(
            replace(
                call,
                chunk=attention_chunk,
                alibi=alibi_slopes is not None,
                by_position=query_factors is not None,
            )
        )
        return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3]), None
    if attention_mask is not None and not is_view_of(attention_mask, any_mask(query.device)):
        raise refusal(module, "an attention mask of its own")
    if query_factors is not None:
        query = (query * query_factors(forward.positions)[:, None]).to(query.dtype)
    pool = context.pool
    q, k, v = (_padded(heads[0].transpose(0, 1), pool.head_dim) for heads in (query, key, value))
    k, v = (_repeated(heads, pool.num_kv_heads) for heads in (k, v))
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    sinks = None if s_aux is None else s_aux.float()
    out = attend_pages(
        context,
        layer,
        q,
        k,
        v,
        scale,
        sliding_window,
        softcap,
        sinks,
        alibi_slopes=alibi_slopes,
        attention_chunk=attention_chunk,
    )
    return out[None, ..., : value.shape[3]], None


def attend_pages(
    context: StepContext,
    layer: int,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None,
    window: int | None,
    soft_cap: float | None = None,
    sinks: Tensor | None = None,
    *,
    alibi_slopes: Tensor | None = None,
    attention_chunk: int | None = None,
) -> Tensor:
    """Stores keys and values [T, kv_heads, d] of the new tokens; returns [T, heads, d] for such queries."""
    context.pool.append(layer, k, v, context.slots)
    selection = None
    if context.sparse is not None and window is None and attention_chunk is None:
        selection = context.sparse.select(layer, context.pool, q, scale)
    attend = context.pool.attend if context.masses is None else context.pool.attend_with_mass
    out, *others = attend(
        layer,
        q,
        context.plan,
        scale=scale,
        window=window,
        logits_soft_cap=soft_cap,
        selection=selection,
        sinks=sinks,
        alibi_slopes=alibi_slopes,
        attention_chunk=attention_chunk,
    )
    if context.masses is not None:
        context.masses.add(others[-1])
    return out


def _padded(heads: Tensor, channels: int) -> Tensor:
    """Pads the channels of each head of [T, heads, d] with zeros."""
    missing = channels - heads.shape[2]
    return torch.nn.functional.pad(heads, (0, missing)) if missing else heads


def _repeated(heads: Tensor, count: int) -> Tensor:
    """Returns [T, count, d]: each KV head repeated as often as in the pages."""
    times = count // heads.shape[1]
    return heads.repeat_interleave(times, 1) if times > 1 else heads


@cache
def any_mask(device: torch.device) -> Tensor:
    """Returns the mask passed to models.

    A four-dimensional mask reaches the attention function unchanged, which does not read it. Without one,
    transformers checks the positions for packed sequences, and on a GPU waits for the answer.
    """
    with torch.inference_mode(False):
        return torch.zeros((1, 1, 1, 1), device=device)


AttentionInterface.register(NAME, tree_attention)
AttentionMaskInterface.register(NAME, asked_mask)  # the kernel knows who sees what: no [T, T] mask is built
