"""Which pages of a KV cache to drop: those that have drawn the least attention."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tts_kernels.checks import integer


def evicted_columns(
    tables: Sequence[npt.NDArray[np.int32]],
    masses: Sequence[npt.NDArray[np.float32]],
    keep: int,
    *,
    sink: int = 1,
    recent: int = 4,
) -> list[int]:
    """Returns the columns whose pages to drop from every branch so that each keeps `keep` pages, ascending.

    Args:
        tables: one int32 [columns] per branch: its pages in order, -1 for evicted ones.
        masses: one float32 [columns] per branch: the attention that each page has drawn so far.
        keep: pages that each branch keeps, at least 1; the branch with the fewest decides.
        sink, recent: how many of the first and last columns of each branch stay, whatever they drew.

    Only pages that all of the branches hold are dropped, because others would stay resident anyway; their
    masses are summed over the branches. The least mass is dropped first, ties to the lower column. If too few
    pages may be dropped, all of those are; if a branch has no more than `keep`, none.

    Accumulated mass is the score of H2O (Zhang et al., arXiv 2306.14048, section 4), here for pages rather
    than tokens and summed over all heads; sink and recent pages are kept as there and in SnapKV (Li et al.,
    arXiv 2404.14469).
    """
    for name, value, least in (("keep", keep, 1), ("sink", sink, 0), ("recent", recent, 1)):
        integer(name, value, least)
    if len(tables) != len(masses):
        raise ValueError(f"masses: got {len(masses)} for {len(tables)} tables, expected one each a branch")
    for b, (table, mass) in enumerate(zip(tables, masses, strict=True)):
        if table.shape != mass.shape or table.ndim != 1:
            raise ValueError(
                f"masses[{b}]: got shape {mass.shape}, expected {table.shape}, that of its table"
            )
        if not np.isfinite(mass).all():
            at = np.flatnonzero(~np.isfinite(mass))[0]
            raise ValueError(f"masses[{b}][{at}]: got {mass[at]}, expected a finite number")
    if not tables:
        return []
    columns = max(0, min(map(len, tables)) - recent)
    pages = np.stack([table[:columns] for table in tables])
    shared = (pages == pages[0]).all(axis=0) & (pages[0] >= 0)
    shared[:sink] = False
    candidates = np.flatnonzero(shared)
    total = np.stack([mass[:columns] for mass in masses]).sum(axis=0, dtype=np.float64)
    count = min(int((table >= 0).sum()) for table in tables) - keep
    order = np.argsort(total[candidates], kind="stable")[: max(0, count)]
    return sorted(candidates[order].tolist())
