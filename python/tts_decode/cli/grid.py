"""The grid of a sweep, and sweep.json, which records it in the folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..model.sparse import SparseConfig
from ..records.strict_json import loads, seal, unseal
from ..records.whole_file import write_whole
from ..search import Strategy
from .errors import CommandError, UsageError
from .saving import saved_name

_SCHEMA, _VERSION = "tts-decode/sweep", 1


@dataclass(frozen=True)
class Setting:
    """A strategy at one width, dense or sparse; all seeds run in one batch."""

    strategy: Strategy[...]
    options: Mapping[str, Any]
    width: int
    sparse: SparseConfig | None

    @property
    def label(self) -> str:
        return f"{self.strategy.name} {self.width}{', sparse' * (self.sparse is not None)}"

    def cell(self, seed: int) -> str:
        """Returns the name of a cell's file and folder."""
        return saved_name(f"{self.strategy.name}-width{self.width}-seed{seed}", self.sparse)


def make_grid(
    strategies: Sequence[Strategy[...]],
    options: Sequence[dict[str, Any]],
    widths: Sequence[int],
    sparse: Sequence[SparseConfig | None],
) -> list[Setting]:
    """Returns all settings, grouped by strategy. options: of each strategy, without its size.

    Raises UsageError for a strategy that has no size, and for options that set it.
    """
    for strategy, own in zip(strategies, options, strict=True):
        if strategy.plain_options.get(strategy.size, (None,))[0] is not int:
            raise UsageError(
                f"--strategy: got {strategy.name}, whose first option is no whole number; expected one that "
                "says how wide it searches, such as n"
            )
        if strategy.size in own:
            raise UsageError(
                f"--option: got {strategy.size}={own[strategy.size]} for {strategy.name}, which --widths sets"
            )
    return [
        Setting(strategy, own | {strategy.size: width}, width, config)
        for strategy, own in zip(strategies, options, strict=True)
        for width in widths
        for config in sparse
    ]


def whole_numbers(flag: str, text: str, least: int, most: int | None = None) -> list[int]:
    """Parses a list such as 4,16. Raises UsageError for other text, numbers out of bounds, and duplicates."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and len(part) < 19 for part in parts):
        raise UsageError(f"{flag}: got {text!r}, expected whole numbers with commas between, such as 4,16")
    numbers = [int(part) for part in parts]
    if min(numbers) < least:
        raise UsageError(f"{flag}: got {min(numbers)}, expected at least {least}")
    if most is not None and max(numbers) > most:
        raise UsageError(f"{flag}: got {max(numbers)}, expected at most {most:,}")
    if len(set(numbers)) < len(numbers):
        raise UsageError(f"{flag}: got {text!r}, which has a number twice")
    return numbers


def write_grid(
    folder: Path, grid: Sequence[Setting], seeds: Sequence[int], about: Mapping[str, Any], *, resume: bool
) -> None:
    """Writes sweep.json: the contents of `about`, and the cells. The grid of an earlier run may be extended.

    Raises UsageError if the folder holds a sweep and `resume` is false, or a cell that the grid lacks;
    CommandError if sweep.json cannot be read or written.
    """
    path = folder / "sweep.json"
    cells = [
        {
            "name": setting.cell(seed),
            "strategy": setting.strategy.name,
            "width": setting.width,
            "seed": seed,
            "sparse": None if setting.sparse is None else asdict(setting.sparse),
        }
        for setting in grid
        for seed in seeds
    ]
    try:
        known = _cells(path) if path.exists() else []
        if known and not resume:
            raise UsageError(f"--save: {folder} holds a sweep already; give --resume, or another folder")
        lacking = [name for name in known if name not in {cell["name"] for cell in cells}]
        if lacking:
            raise UsageError(
                f"--resume: {folder} holds {lacking[0]}, which is not in this grid; give all of its "
                "strategies, widths and seeds, and more if you like"
            )
        told = {"schema": _SCHEMA, "version": _VERSION, **about, "seeds": list(seeds), "cells": cells}
        write_whole(path, seal(told)[0].encode())
    except OSError as cause:
        raise CommandError(f"--save: {path} cannot be used: {cause.strerror}") from cause


def _cells(path: Path) -> list[str]:
    try:
        data = loads(path.read_bytes())
        if not isinstance(data, dict) or (data.get("schema"), data.get("version")) != (_SCHEMA, _VERSION):
            raise ValueError(f"is no {_SCHEMA!r} of version {_VERSION}")
        return [cell["name"] for cell in unseal(data)[0]["cells"]]
    except (ValueError, KeyError, TypeError) as cause:
        raise CommandError(
            f"--save: {path} {cause}; remove it, the results are in the files beside it"
        ) from cause
