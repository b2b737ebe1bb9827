"""The status of a pool, and the counters of several decoders as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..core.stats import DecoderStats
from ..cost.forward import StepCost

_NOTHING = DecoderStats(0, 0, 0, 0.0, StepCost(), 0, 0, 0, 0, 0, 0, 0, 0)
_COUNTED = ("steps", "generated_tokens", "forward_tokens", "seconds", "cost", "peak_bytes")
_HELD = ("branches", "pins", "logical_tokens", "unique_tokens", "resident_bytes")


@dataclass(frozen=True)
class PoolStats:
    """A pool's status.

    Attributes:
        actors: number that have a decoder.
        wanted: number that the cluster should have; the others are being started, or wait for it.
        lost: number that died.
        waiting, running, ended: searches.
        decoders: the counters of all decoders, including lost ones; what those held at the end is not
            included.
    """

    actors: int
    wanted: int
    lost: int
    waiting: int
    running: int
    ended: int
    decoders: DecoderStats


def total(stats: Sequence[DecoderStats]) -> DecoderStats:
    """Returns sums; page sizes are the last decoder's. Seconds and peaks are added too."""
    found = _NOTHING
    for one in stats:
        sums = {name: getattr(found, name) + getattr(one, name) for name in (*_COUNTED, *_HELD)}
        found = replace(found, **sums, page_bytes=one.page_bytes, page_size=one.page_size)
    return found


def closed(stats: DecoderStats) -> DecoderStats:
    """Returns the counters of a decoder that is gone, without what it held."""
    nothing: dict[str, Any] = dict.fromkeys(_HELD, 0)
    return replace(stats, **nothing)
