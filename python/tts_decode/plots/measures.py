"""What a search costs, in the units of an axis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .runs import Ended

MIB = 1 << 20


@dataclass(frozen=True)
class Measure:
    """A cost of a search.

    title: as in "accuracy against ...". axis: its label, with the unit. of: a search's cost in that unit,
    None if it failed.
    """

    title: str
    axis: str
    of: Callable[[Ended], float | None]


def _mib(count: float | None) -> float | None:
    return None if count is None else count / MIB


MEASURES = {
    "tokens": Measure(
        "tokens",
        "tokens generated per problem (mean)",
        lambda search: None if search.failed else float(search.generated_tokens),
    ),
    "seconds": Measure("time", "seconds per search (mean)", lambda search: search.seconds),
    "eflops": Measure(
        "eFLOPs",
        "eTFLOP per problem (mean)",
        lambda search: None if search.failed else search.eflops / 1e12,
    ),
    "mean-kv": Measure(
        "mean KV memory",
        "MiB of KV held by a search, averaged over its time (mean)",
        lambda search: _mib(search.mean_kv_bytes),
    ),
    "peak-kv": Measure(
        "peak KV memory",
        "MiB of KV held by a search at most (mean)",
        lambda search: _mib(search.peak_kv_bytes),
    ),
}
"""Measures by their names in `tts-decode plot --x`. Means are over problems whose searches did not fail."""
