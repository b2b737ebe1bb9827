"""KV held by one search over its duration."""

from __future__ import annotations

from dataclasses import dataclass

from ..search import SearchResult
from .measures import MIB


@dataclass(frozen=True)
class Held:
    """KV over time. seconds: of each sample, since the search began; each represents the time since the last.

    Attributes:
        resident: MiB of its distinct KV pages.
        unshared: MiB if each branch held its own copy of its tokens.
    """

    label: str
    seconds: tuple[float, ...]
    resident: tuple[float, ...]
    unshared: tuple[float, ...]


def kv_over_time(label: str, result: SearchResult) -> Held:
    """Returns the KV of a search over time.

    Raises ValueError: the search has no samples, or its file does not record the size of a page.
    """
    stats = result.stats
    if not stats.memory or not stats.page_size:
        why = "no samples of KV" if not stats.memory else "no size of a KV page"
        raise ValueError(f"{label}: its file has {why}; engines of others and older files have none")
    token_mib = stats.page_bytes / stats.page_size / MIB
    return Held(
        label,
        tuple(sample.seconds for sample in stats.memory),
        tuple(sample.resident_bytes / MIB for sample in stats.memory),
        tuple(sample.logical_tokens * token_mib for sample in stats.memory),
    )
