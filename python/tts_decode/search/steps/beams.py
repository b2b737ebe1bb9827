"""What searches with a fixed number of beams share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...core.checks import at_least
from ...select import allocate
from ..run import SearchRun

if TYPE_CHECKING:
    from ...core.interfaces import Branch


def check_beams(n: int, beam_width: int) -> None:
    """Both count from 1, and the second divides the first."""
    at_least(1, n=n, beam_width=beam_width)
    if n % beam_width:
        raise ValueError(f"beam_width: got {beam_width}, expected a divisor of n = {n}")


def share_out(run: SearchRun, live: Sequence[Branch], kept: Sequence[int], n: int) -> list[Branch]:
    """`n` forks of the branches at the indices `kept`, as even as they go, the first ones with one more; the
    others are pruned."""
    counts = dict(zip(kept, allocate(n, [1.0] * len(kept)), strict=True))
    return run.expand(live, [counts.get(i, 0) for i in range(len(live))])
