"""Runs as points and lines: a point is a setting, a line joins the widths of one strategy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from ..select.statistics import Interval, bootstrap_mean, wilson_interval
from .measures import Measure
from .runs import SavedRun

# Settings that vary along a line: the strategy's width, else the first of these that differs between runs.
_LIMITS = ("budget_tokens", "budget_cost", "budget_seconds", "sampling.max_tokens")
# Settings that distinguish no lines: equal in all runs, pooled, or repeated by an option, as a sweep's width.
_COMMON = ("strategy", "model", "problems", "problems_crc32", "sampling.seed", "sparse", "width")


@dataclass(frozen=True)
class Point:
    """One setting, over all its seeds.

    Attributes:
        accuracy: the share solved, with Wilson's interval for as many trials as there are problems: seeds are
            averaged within a problem, which makes it slightly too wide rather than too narrow.
        cost: mean over problems, with a bootstrap interval over them; without ends if all cost the same.
        solved, costs: by the problem's index, means over seeds.
        width: such as "n=8"; "" if unknown.
    """

    accuracy: Interval
    cost: Interval
    solved: Mapping[int, float]
    costs: Mapping[int, float]
    runs: tuple[SavedRun, ...]
    width: str = ""

    @property
    def unfinished(self) -> bool:
        return any(run.missing for run in self.runs)


@dataclass(frozen=True)
class Line:
    """A line of a figure.

    name: the strategy, with the settings that distinguish it from other lines. sparse: which pages a sparse
    one reads, "1/8" or "64 pages"; None for a dense one. points: by width.
    """

    name: str
    sparse: str | None
    points: tuple[Point, ...]

    @property
    def label(self) -> str:
        return self.name if self.sparse is None else f"{self.name}, sparse {self.sparse}"


def lines_of(runs: Sequence[SavedRun], measure: Measure) -> list[Line]:
    """Returns the lines, in the order of their first runs.

    Runs in which no search ended give no point. Runs that differ only in their seed are one point.

    Raises ValueError: a problem has no verifier, every search of a setting failed, or two runs have the same
    settings and seed.
    """
    found: dict[tuple[str, str | None], dict[Any, list[SavedRun]]] = {}
    widths: dict[str, str | None] = {}
    for place in places_of([run for run in runs if run.searches]):
        found.setdefault((place.name, place.sparse), {}).setdefault(place.value, []).append(place.run)
        widths[place.name] = place.width
    return [
        Line(
            name,
            sparse,
            tuple(
                _point(by_value[value], measure, _shown(widths[name], value))
                for value in sorted(by_value, key=_order)
            ),
        )
        for (name, sparse), by_value in found.items()
    ]


@dataclass(frozen=True)
class Place:
    """A run's place: the line's name, and the value of the setting `width`, None without one."""

    run: SavedRun
    name: str
    sparse: str | None
    width: str | None
    value: Any

    @property
    def setting(self) -> tuple[str, str | None, Any]:
        """What it has in common with runs of other seeds."""
        return self.name, self.sparse, self.value

    @property
    def label(self) -> str:
        parts = (self.name, self.sparse and f"sparse {self.sparse}", _shown(self.width, self.value))
        return ", ".join(part for part in parts if part)


def all_failed(runs: Sequence[SavedRun]) -> list[Place]:
    """Returns the places of the runs in which searches ended but all failed, for every seed.

    They say nothing about what a strategy solves, and have no cost.
    """
    places = places_of([run for run in runs if run.searches])
    found = {place.setting for place in places if not all(search.failed for search in place.run.searches)}
    return [place for place in places if place.setting not in found]


def places_of(runs: Sequence[SavedRun]) -> list[Place]:
    """Returns one place per run, in order."""
    by_strategy: dict[str, list[SavedRun]] = {}
    for run in runs:
        by_strategy.setdefault(run.strategy, []).append(run)
    differing = {name: _differing(group) for name, group in by_strategy.items()}
    widths = {name: _width(group, differing[name]) for name, group in by_strategy.items()}
    found = []
    for run in runs:
        width, differ = widths[run.strategy], differing[run.strategy]
        rest = [key for key in differ if key != width]
        told = [_shown(key, run.flat.get(key)) for key in rest if not key.startswith("sparse.")]
        among = [
            _shown(key, run.flat.get(key))
            for key in rest
            if key.startswith("sparse.") and key != "sparse.budget"
        ]
        sparse = None if run.sparse is None else ", ".join([_pages(run.sparse.get("budget")), *among])
        value = None if width is None else run.flat.get(width)
        found.append(Place(run, ", ".join([run.strategy, *told]), sparse, width, value))
    return found


def _differing(runs: Sequence[SavedRun]) -> list[str]:
    """Returns the names of settings that differ among a strategy's runs.

    Settings of sparse attention are compared among the sparse runs.
    """
    names = dict.fromkeys(name for run in runs for name in run.flat if name not in _COMMON)
    found = []
    for name in names:
        told = [run for run in runs if run.sparse is not None] if name.startswith("sparse.") else runs
        if len({run.flat.get(name) for run in told}) > 1:
            found.append(name)
    return found


def _width(runs: Sequence[SavedRun], differing: Sequence[str]) -> str | None:
    own = runs[0].size
    for name in (own, *_LIMITS):
        if name in differing:
            return name
    dense = [name for name in differing if not name.startswith("sparse.")]
    numbers = [name for name in dense if all(_is_number(run.flat.get(name)) for run in runs)]
    if len(numbers) == 1:
        return numbers[0]
    return own if all(_is_number(run.flat.get(own)) for run in runs) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _order(value: Any) -> tuple[bool, float]:
    """Sorts no limit above any limit."""
    return (False, float(value)) if _is_number(value) else (True, 0.0)


def _shown(name: str | None, value: Any) -> str:
    if name is None:
        return ""
    short = name.rpartition(".")[2]
    return f"no {short}" if value is None else f"{short}={value}"


def _pages(budget: Any) -> str:
    return str(Fraction(budget).limit_denominator(1000)) if isinstance(budget, float) else f"{budget} pages"


def _point(runs: list[SavedRun], measure: Measure, width: str) -> Point:
    seeds: dict[Any, SavedRun] = {}
    for run in runs:
        other = seeds.setdefault(run.seed, run)
        if other is not run:
            raise ValueError(f"{other.path} and {run.path} have the same settings and seed; give one of them")
    for run in runs:
        if any(search.solved is None for search in run.searches):
            raise ValueError(f"{run.path} has problems without an answer to compare with: no accuracy")
    solved = _by_problem((s.index, float(bool(s.solved))) for run in runs for s in run.searches)
    told = [(s.index, measure.of(s)) for run in runs for s in run.searches]
    costs = _by_problem((index, cost) for index, cost in told if cost is not None)
    if not costs:
        raise ValueError(f"{runs[0].path}: every search failed; no cost to draw")
    accuracy = wilson_interval(sum(solved.values()), len(solved))
    return Point(accuracy, bootstrap_mean(list(costs.values())), solved, costs, tuple(runs), width)


def _by_problem(values: Iterable[tuple[int, float]]) -> dict[int, float]:
    """Returns means by index, sorted by index."""
    found: dict[int, list[float]] = {}
    for index, value in values:
        found.setdefault(index, []).append(value)
    return {index: sum(found[index]) / len(found[index]) for index in sorted(found)}
