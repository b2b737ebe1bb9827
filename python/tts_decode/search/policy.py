"""Chooses a question's setting by its difficulty: data that is measured, saved and read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tts_kernels.checks import instance

from ..errors import TTSError
from ..records.strict_json import loads
from ..select import difficulty_bin
from .strategy import Strategy, get_strategy

_FORMAT = 1


class PolicyFileError(TTSError, ValueError):
    """A policy file cannot be used; the message names the file and the reason."""


@dataclass(frozen=True)
class Setting:
    """A strategy with options other than its size and scorer, such as `num_sequential` of `revisions`."""

    strategy: Strategy[...]
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        instance("strategy", self.strategy, Strategy, "get_strategy finds one by its name")
        self.strategy.check_options(self.options)

    def __str__(self) -> str:
        options = ", ".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.strategy.name}({options})"

    def arguments(self, n: int, known: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the strategy's arguments at size `n`: its options, and its parameters that are `known`."""
        taken = {name: value for name, value in known.items() if name in self.strategy.parameters}
        return {self.strategy.size: n} | taken | dict(self.options)

    def check_size(self, n: int) -> None:
        """Raises ValueError if an option that must divide the size does not."""
        for name in ("beam_width", "num_sequential"):
            width = {**self.strategy.options, **self.options}.get(name)
            if isinstance(width, int) and n % width:
                raise ValueError(
                    f"{name}: got {width} of {self.strategy.name}, expected a divisor of n = {n}"
                )


@dataclass(frozen=True)
class Policy:
    """A setting for each bin of questions, easiest first.

    Attributes:
        edges: descending mean scores of a question's probes that separate the bins.
        settings: one more than `edges`.
        about: what it was measured on, as JSON values; see `fit_policy`.

    Raises:
        ValueError: the edges do not descend, or the numbers of edges and settings do not fit.
    """

    edges: Sequence[float]
    settings: Sequence[Setting]
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.settings) != len(self.edges) + 1:
            raise ValueError(
                f"settings: got {len(self.settings)} entries for {len(self.edges)} edges, expected one more"
            )
        difficulty_bin(0.0, self.edges)  # checks them

    def setting(self, mean_score: float) -> Setting:
        """Returns the setting for this mean probe score; one on an edge belongs to the easier bin."""
        return self.settings[difficulty_bin(mean_score, self.edges)]

    def save(self, path: str | Path) -> None:
        settings = [
            {"strategy": setting.strategy.name, "options": dict(setting.options)} for setting in self.settings
        ]
        data = {"format": _FORMAT, "edges": list(self.edges), "settings": settings, "about": self.about}
        Path(path).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Policy:
        """Reads a policy.

        Raises:
            PolicyFileError: the file is missing or no policy, or names an unknown strategy.
        """
        try:
            data = loads(Path(path).read_bytes())
            if data["format"] != _FORMAT:
                raise ValueError(f"format: got {data['format']!r}, expected {_FORMAT}")
            settings = [Setting(get_strategy(s["strategy"]), dict(s["options"])) for s in data["settings"]]
            return cls([float(edge) for edge in data["edges"]], settings, data["about"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise PolicyFileError(
                f"policy: got {str(path)!r}, expected a file of Policy.save: {type(error).__name__}: {error}"
            ) from error
