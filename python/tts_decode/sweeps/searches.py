"""A search of a sweep as the tables have it: plain data without texts and trees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """A candidate of a search, one of those that a rule chooses from.

    Attributes:
        correct: whether its text is right.
        answer: the number of the first candidate of the search whose answer means the same; None where it
            abstains from votes, as one that was cut off with the search does.
        score: the strategy's, None where it did not score it.
    """

    correct: bool
    answer: int | None = None
    score: float | None = None


@dataclass(frozen=True)
class Search:
    """One search. cell: of the sweep, the name of its file. problem: its number, from 0.

    Attributes:
        solved: whether the chosen answer is right.
        found: whether a candidate is.
        tokens: sampled ones.
        seconds: of the search, others in its batch included.
        mean_kv_bytes, peak_kv_bytes: what its branches held.
        eflops: its cost by Kinetics.
        stopped: why it ended before its time.
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
        """What it has in common with the searches of other seeds: strategy, width and whether sparse."""
        return self.strategy, self.width, self.sparse


def by_setting(searches: Sequence[Search]) -> dict[tuple[str, int, bool], list[Search]]:
    """In the order in which the settings come, without those of which all searches failed: a wrong option
    says nothing of a strategy."""
    found: dict[tuple[str, int, bool], list[Search]] = {}
    for search in searches:
        found.setdefault(search.setting, []).append(search)
    return {
        setting: group
        for setting, group in found.items()
        if not all(search.error is not None for search in group)
    }


def by_problem(searches: Sequence[Search]) -> list[list[Search]]:
    """The searches of each problem, one a seed, by the problem's number."""
    found: dict[int, list[Search]] = {}
    for search in searches:
        found.setdefault(search.problem, []).append(search)
    return [found[problem] for problem in sorted(found)]
