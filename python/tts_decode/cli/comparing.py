"""Shared by `compare` and `sweep`: strategies on problems whose answers are known."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from ..search import Strategy
from ..tasks import Task, default_tasks
from . import completion
from . import options as opt
from .errors import CommandError, UsageError, at_least, usage_errors
from .groups import ProblemOptions
from .scorers import check_scorer
from .strategy_options import get_strategy, parse_options

_DEFAULT_STRATEGIES = ("best_of_n", "beam_search", "rebase", "ets")
_DEFAULT_LIMIT = 8  # problems of the default set: a few minutes on two cores


@dataclass(frozen=True)
class ComparedOptions:
    """Options of the comparison. Raises UsageError for values that nothing else checks."""

    strategy: Annotated[
        list[str],
        opt.search_option(
            "--strategy",
            "-s",
            metavar="NAME",
            help="A strategy to run: a name from the list below, or FILE.py:NAME; may be repeated.",
            autocompletion=completion.strategies,
        ),
    ] = field(default_factory=lambda: list(_DEFAULT_STRATEGIES))
    option: opt.Options = field(default_factory=list)
    scorer: opt.Scorer = None
    limit: Annotated[
        int | None,
        opt.search_option(
            help="Only the first N problems. Default: 8 of the default set's 400, all of a file."
        ),
    ] = None
    shots: Annotated[
        int,
        opt.search_option(help="Solved problems of the default set before each one: a long shared prompt."),
    ] = 0

    def __post_init__(self) -> None:
        at_least(1, limit=self.limit)
        at_least(0, shots=self.shots)
        check_scorer(self.scorer)

    def strategies(self, *, unsafe_tools: bool) -> list[tuple[Strategy[...], dict[str, Any]]]:
        """Returns each strategy with its options."""
        chosen = [get_strategy(name) for name in self.strategy]
        if len({strategy.name for strategy in chosen}) < len(chosen):
            raise UsageError("--strategy: the same strategy is given twice")
        return list(zip(chosen, parse_options(chosen, self.option, unsafe_tools=unsafe_tools), strict=True))

    def problems(self, given: ProblemOptions, seed: int) -> list[Task]:
        """Returns the problems of --tasks or the default ones. seed: as in `ProblemOptions.read`."""
        if self.shots and given.tasks is not None:
            raise UsageError(
                "--shots: only for the default problems; put examples into the prompts of --tasks"
            )
        with usage_errors({"limit, shots": "--limit, --shots"}):
            default = default_tasks(self.limit or _DEFAULT_LIMIT, self.shots) if given.tasks is None else []
        found = given.read(seed, default)[: self.limit]
        unknown = [task.name for task in found if task.verify is None]
        if unknown:
            raise CommandError(f'task {unknown[0]} has no answer to compare with; add "answer" to its line')
        return found
