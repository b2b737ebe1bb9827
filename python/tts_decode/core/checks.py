"""Checks of what callers hand to a branch; an error names the argument, what it got, and what is expected."""

from __future__ import annotations

import operator
from collections.abc import Sequence

from torch import Tensor

from .step import Step


def checked_position(name: str, value: int, low: int, length: int) -> int:
    """A position in a branch of so many tokens, at least `low`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if not low <= value <= length:
        raise ValueError(f"{name} must lie in {low}..{length}, the branch's length, got {value}")
    return value


def checked_rows(rows: Sequence[int], count: int) -> list[int]:
    """Ascending indices into `count` tokens."""
    indices = [operator.index(row) for row in rows]
    if indices != sorted(set(indices)) or not all(0 <= row < count for row in indices):
        raise ValueError(f"rows must ascend and lie in 0..{count - 1}, as tokens has {count}, got {indices}")
    return indices


def check_embeds(embeds: Tensor, hidden: int) -> None:
    if not isinstance(embeds, Tensor) or not embeds.is_floating_point():
        raise TypeError(f"embeds must be a tensor of floating point, got {type(embeds).__name__}")
    if embeds.dim() != 2 or embeds.shape[1] != hidden:
        raise ValueError(f"embeds must have shape [n, {hidden}], got {list(embeds.shape)}")
    if not embeds.isfinite().all():
        raise ValueError("embeds must be finite, got NaN or inf")


def check_recorded(step: Step) -> None:
    if not isinstance(step, Step):
        raise TypeError(f"step must be a Step, got {type(step).__name__}")
    if not len(step.tokens) == len(step.logprobs) == len(step.entropies):
        raise ValueError(
            f"step: got {len(step.tokens)} tokens, {len(step.logprobs)} logprobs and {len(step.entropies)} "
            "entropies, expected as many of each"
        )


def check_children(n: int, seeds: Sequence[int] | None) -> None:
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"n must be a positive integer, got {n!r}")
    if seeds is not None and len(seeds) != n:
        raise ValueError(f"seeds must have n = {n} entries, got {len(seeds)}")
    for seed in seeds or ():
        if not isinstance(seed, int):
            raise TypeError(f"seeds must be integers, got {seed!r}")
