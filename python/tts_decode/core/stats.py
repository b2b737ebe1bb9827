"""Counters of a decoder's work, and the size of what it holds."""

from __future__ import annotations

from dataclasses import dataclass

from ..cost.forward import StepCost


@dataclass(frozen=True)
class DecoderStats:
    """Counters since the decoder was made, and the current contents of its KV tree.

    Attributes:
        steps: forwards of the model.
        forward_tokens: tokens in these forwards, including prompts.
        generated_tokens: sampled tokens.
        seconds: wall-clock time inside the engine.
        cost: flops and bytes of all forwards; `cost.combined()` is their cost in eFLOPs.
        branches: live branches.
        logical_tokens: KV tokens summed over them.
        unique_tokens: KV tokens stored.
        pins: pinned prefixes.
        resident_bytes, peak_bytes: KV bytes of the pages in use, now and at their peak.
        offloaded_bytes: KV bytes of the pages offloaded from the pool.
        moved_out_bytes, moved_in_bytes: bytes offloaded and reloaded so far.
        page_bytes: KV bytes of one page over all layers.
        page_size: tokens of a page.
    """

    steps: int
    generated_tokens: int
    forward_tokens: int
    seconds: float
    cost: StepCost
    branches: int
    pins: int
    logical_tokens: int
    unique_tokens: int
    resident_bytes: int
    peak_bytes: int
    page_bytes: int
    page_size: int
    offloaded_bytes: int = 0
    moved_out_bytes: int = 0
    moved_in_bytes: int = 0
