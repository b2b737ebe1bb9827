"""A search of a sweep as in the tables: plain data without texts and trees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """A candidate of a search, one of those that a rule chooses from.

    Attributes:
        correct: whether its text is right.
        answer: the number of the search's first candidate whose answer means the same; None if it abstains
            from votes, as one that was cut off with the search does.
        score: the strategy's; None if it did not score it.
    """

    correct: bool
    answer: int | None = None
    score: float | None = None


@dataclass(frozen=True)
class Search:
    """One search.

    Attributes:
        cell: of the sweep, the name of its file.
        problem: its number, from 0.
        solved: whether the chosen answer is right.
        found: whether a candidate is right.
        tokens: sampled ones.
        seconds: of the search, including others in its batch.
        mean_kv_bytes, peak_kv_bytes: what its branches held.
        eflops: its cost by Kinetics.
        stopped: why it ended early.
        error: why it failed.
    """

    cell: str
    strategy: str
    width: int
    seed: int
    sparse: bool
    problem: int
    task: str
    solved: bool = False
    found: bool = False
    tokens: int = 0
    seconds: float = 0.0
    mean_kv_bytes: float = 0.0
    peak_kv_bytes: float = 0.0
    eflops: float = 0.0
    stopped: str | None = None
    error: str | None = None
    samples: tuple[Sample, ...] = ()

    @property
    def setting(self) -> tuple[str, int, bool]:
        """What it has in common with searches of other seeds: strategy, width and whether sparse."""
        return self.strategy, self.width, self.sparse


def by_setting(searches: Sequence[Search]) -> dict[tuple[str, int, bool], list[Search]]:
    """Groups searches by setting, in the order of appearance.

    Settings whose searches all failed are left out: a wrong option says nothing about a strategy.
    """
    found: dict[tuple[str, int, bool], list[Search]] = {}
    for search in searches:
        found.setdefault(search.setting, []).append(search)
    return {
        setting: group
        for setting, group in found.items()
        if not all(search.error is not None for search in group)
    }


def by_problem(searches: Sequence[Search]) -> list[list[Search]]:
    """Returns the searches of each problem, one per seed, by the problem's number."""
    found: dict[int, list[Search]] = {}
    for search in searches:
        found.setdefault(search.problem, []).append(search)
    return [found[problem] for problem in sorted(found)]
