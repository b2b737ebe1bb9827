"""What a decoder has done so far, and what it holds."""

from __future__ import annotations

from dataclasses import dataclass

from ..cost.forward import StepCost


@dataclass(frozen=True)
class DecoderStats:
    """Counters since the decoder was made, and what its KV tree holds now.

    Attributes:
        steps: forwards of the model.
        forward_tokens: tokens that went through them, prompts included.
        generated_tokens: sampled tokens.
        seconds: wall time inside the engine.
        cost: flops and bytes of all forwards; `cost.combined()` is their cost in eFLOPs.
        branches: live branches.
        logical_tokens: KV tokens summed over them.
        unique_tokens: KV tokens stored.
        pins: prefixes pinned.
        resident_bytes, peak_bytes: KV bytes of the pages in use, now and at most.
        offloaded_bytes: KV bytes of the pages beside the pool.
        moved_out_bytes, moved_in_bytes: moved there and back so far.
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
