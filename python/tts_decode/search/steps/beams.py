"""Shared by searches with a fixed number of beams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...core.checks import at_least
from ...select import allocate, top_k
from ..answers import score_of
from ..run import SearchRun

if TYPE_CHECKING:
    from ...core.interfaces import Branch


def check_beams(n: int, beam_width: int) -> None:
    """Checks that both are at least 1, and that the second divides the first."""
    at_least(1, n=n, beam_width=beam_width)
    if n % beam_width:
        width = next(width for width in range(min(n, beam_width), 0, -1) if n % width == 0)
        raise ValueError(
            f"beam_width: got {beam_width}, expected a divisor of n = {n}; set beam_width={width} or "
            f"n={-(-n // beam_width) * beam_width}"
        )


def truncate_finished(run: SearchRun, first: int, n: int, sort_completed: bool) -> None:
    """Keeps `n` of the candidates from index `first` on: the first to finish, or the best-scored."""
    ended = range(first, len(run.candidates))
    kept: Sequence[int] = ended[:n]
    if sort_completed and len(ended) > n:
        best = top_k([score_of(candidate) for candidate in run.candidates[first:]], n)
        kept = sorted(ended[i] for i in best)
    run.keep_candidates([*range(first), *kept])


def share_out(run: SearchRun, live: Sequence[Branch], kept: Sequence[int], n: int) -> list[Branch]:
    """Returns `n` forks of the branches at the indices `kept`, spread evenly; prunes the others.

    If they cannot be even, the first ones get one more.
    """
    counts = dict(zip(kept, allocate(n, [1.0] * len(kept)), strict=True))
    return run.expand(live, [counts.get(i, 0) for i in range(len(live))])
