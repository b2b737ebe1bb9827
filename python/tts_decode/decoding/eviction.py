"""Drops the pages that have drawn the least attention."""

from __future__ import annotations

from collections.abc import Sequence

from ..select import evicted_columns
from .live_path import LivePath
from .runtime import Runtime


def evict_columns(runtime: Runtime, paths: Sequence[LivePath], keep: int, *, sink: int, recent: int) -> int:
    """Implements `TreeDecoder.evict` for paths of one runtime; returns the number of pages freed."""
    if not runtime.track_mass:
        raise RuntimeError(
            "evict needs attention masses, which this decoder does not keep: make it with track_mass=True"
        )
    for path in paths:
        path.check_idle()
        path.check_computed()
    if recent < 2:
        raise ValueError(f"recent: got {recent}, expected >= 2, as a last token may have to be fed again")
    ids = [path.id for path in paths]
    tables, lengths = runtime.tree.block_tables(ids)
    columns = -(-lengths // runtime.tree.page_size)
    held = [table[:count] for table, count in zip(tables, columns, strict=True)]
    masses = [path.masses() for path in paths]
    return runtime.tree.evict(ids, evicted_columns(held, masses, keep, sink=sink, recent=recent))
