"""The decoder's own checks of arguments, worded like those of `tts_kernels.checks`."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from tts_kernels.checks import any_integer, instance, integer, number, shown

from .step import Step


@contextmanager
def value_errors() -> Iterator[None]:
    """Turns TypeError into ValueError, for arguments that promise one exception whatever is wrong."""
    try:
        yield
    except TypeError as error:
        raise ValueError(str(error)) from None


def at_least(least: int, **values: int) -> None:
    """Raises TypeError or ValueError, naming the argument, unless each is an integer of at least `least`."""
    for name, value in values.items():
        integer(name, value, least)


def checked_count(name: str, value: Any, least: int = 1) -> int:
    """Returns an int of at least `least`; raises ValueError for anything else."""
    with value_errors():
        return integer(name, value, least)


def checked_positive(name: str, value: Any, what: str) -> float:
    """Returns a finite number above 0; raises ValueError for anything else. what: the noun in the error."""
    with value_errors():
        return number(name, value, above=0, what=what)


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Raises ValueError unless the value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name}: got {shown(value)}, expected one of {', '.join(map(repr, choices))}")


def checked_rows(rows: Sequence[int], count: int) -> list[int]:
    """Returns ascending indices into `count` tokens."""
    indices = [operator.index(row) for row in rows]
    if indices != sorted(set(indices)) or not all(0 <= row < count for row in indices):
        raise ValueError(f"rows: got {shown(indices)}, expected ascending indices in 0..{count - 1}")
    return indices


def checked_layers(layers: Sequence[int] | str, count: int) -> tuple[int, ...]:
    """Returns the numbers of hidden states of a model with `count` layers; it has `count` + 1 of them."""
    if isinstance(layers, str):
        check_choice("layers", layers, ("all",))
        return tuple(range(count + 1))
    numbers = tuple(integer("layers", layer, 0) for layer in layers)
    if not numbers or max(numbers) > count or len(set(numbers)) < len(numbers):
        raise ValueError(f"layers: got {list(numbers)}, expected distinct numbers from 0 to {count}")
    return numbers


def check_embeds(embeds: Tensor, hidden: int) -> None:
    if not isinstance(embeds, Tensor) or not embeds.is_floating_point():
        got = embeds.dtype if isinstance(embeds, Tensor) else type(embeds).__name__
        raise TypeError(f"embeds: got {got}, expected a tensor of floating point")
    if embeds.dim() != 2 or embeds.shape[1] != hidden:
        raise ValueError(f"embeds: got shape {list(embeds.shape)}, expected [n, {hidden}]")
    if not embeds.isfinite().all():
        raise ValueError("embeds: got NaN or inf, expected finite numbers")


def check_recorded(step: Step) -> None:
    instance("step", step, Step)
    if not len(step.tokens) == len(step.logprobs) == len(step.entropies):
        raise ValueError(
            f"step: got {len(step.tokens)} tokens, {len(step.logprobs)} logprobs and {len(step.entropies)} "
            "entropies, expected as many of each"
        )


def checked_seeds(n: int, seeds: Sequence[int] | None) -> list[int] | None:
    """Returns the seeds of `n` children; None if none are given."""
    checked_count("n", n)
    if seeds is None:
        return None
    if len(seeds) != n:
        raise ValueError(f"seeds: got {len(seeds)} entries, expected {n}, one a child")
    return [any_integer(f"seeds[{i}]", seed) for i, seed in enumerate(seeds)]
