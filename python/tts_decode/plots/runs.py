"""A saved run as a plot needs it: settings, and the outcome of each search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Ended:
    """A search that ended.

    Attributes:
        index: the problem's number among the run's.
        solved: None if the problem has no verifier.
        eflops: as docs/cost.md counts them.
        seconds, mean_kv_bytes, peak_kv_bytes: of this search; None if it failed.
    """

    index: int
    solved: bool | None
    generated_tokens: int
    eflops: float
    seconds: float | None = None
    mean_kv_bytes: float | None = None
    peak_kv_bytes: float | None = None

    @property
    def failed(self) -> bool:
        return self.seconds is None


@dataclass(frozen=True)
class SavedRun:
    """One NAME.jsonl of `--save`: a strategy with its settings on a set of problems.

    Attributes:
        settings: of the file's header.
        made: its date, version and machine; empty in files of older versions.
        searches: those that ended, at most one per problem.
    """

    path: Path
    settings: Mapping[str, Any]
    searches: tuple[Ended, ...]
    made: Mapping[str, str] = field(default_factory=dict)

    @property
    def strategy(self) -> str:
        return str(self.settings.get("strategy", self.path.stem))

    @property
    def sparse(self) -> Mapping[str, Any] | None:
        """The settings of sparse attention, None for a dense run."""
        found = self.settings.get("sparse")
        return found if isinstance(found, Mapping) else None

    @property
    def seed(self) -> Any:
        sampling = self.settings.get("sampling")
        return sampling.get("seed") if isinstance(sampling, Mapping) else None

    @property
    def problems(self) -> int:
        """Number of problems that the run was given."""
        return int(self.settings.get("problems", len(self.searches)))

    @property
    def missing(self) -> int:
        """Number of problems that have not ended."""
        return self.problems - len(self.searches)

    @property
    def size(self) -> str:
        """Dotted name of the option that sets how widely it searches."""
        from ..search import STRATEGIES

        strategy = STRATEGIES.get(self.strategy)
        return f"options.{'n' if strategy is None else strategy.size}"

    @cached_property
    def flat(self) -> dict[str, Any]:
        """Returns the settings by dotted names; options that were not given have the strategy's defaults."""
        from ..search import STRATEGIES

        strategy = STRATEGIES.get(self.strategy)
        defaults = {} if strategy is None else {k: v for k, (_, v) in strategy.plain_options.items()}
        options = self.settings.get("options")
        given = options if isinstance(options, Mapping) else {}
        return _flat({**self.settings, "options": {**defaults, **given}})


def _flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{above}{name}.")
        else:
            found[f"{above}{name}"] = str(value) if isinstance(value, list) else value
    return found
