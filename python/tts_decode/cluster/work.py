"""What is sent to an actor, and what comes back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from ..core.budget import Budget
from ..core.params import SamplingParams
from ..core.prompts import Prompt
from ..decoding.branch import TreeBranch
from ..decoding.decoder import TreeDecoder
from ..rewards import Scorer
from ..search import Journal, SearchResult, SearchRun, Strategy

T = TypeVar("T", covariant=True)


class Host(Protocol):
    """What an actor offers to a search.

    Attributes:
        decoder: the actor's, which all of its searches share.
        journal: of this search, with what an earlier run of it had computed; None if none is kept.
    """

    decoder: TreeDecoder
    journal: Journal | None

    def keep(self, root: TreeBranch) -> None:
        """Allows the prompt to stay resident after the search, for others that begin with it."""


class Work(Protocol[T]):
    """A search as sent to an actor: it and everything in it can be pickled.

    Attributes:
        beginning: text by which searches with the same prefix find the same actor.
        journal: the journal's file on the pool's machine; None: none is kept.
    """

    @property
    def beginning(self) -> str: ...

    @property
    def journal(self) -> Path | None: ...

    async def __call__(self, host: Host) -> T:
        """Runs on the actor. The result must depend only on this work and the model: it may run again."""


@dataclass(frozen=True)
class PooledSearch:
    """One search of a strategy on one prompt.

    Attributes:
        prompt: same as for `TreeDecoder.root`.
        options: of the strategy.
        sampling: its seed is all of the search's randomness; None: the decoder's.
        budget: its limits; each run begins with none of it used.
        scorer: for strategies that take one.
        make_scorer: makes the scorer on the actor, from its decoder.
        scorer_timeout, tool_timeout: same as for `SearchRun`.
        journal: its file; the folder must exist.
    """

    prompt: Prompt
    strategy: Strategy[...]
    options: Mapping[str, Any] = field(default_factory=dict)
    sampling: SamplingParams | None = None
    budget: Budget | None = None
    scorer: Scorer | None = None
    make_scorer: Callable[[TreeDecoder], Scorer] | None = None
    scorer_timeout: float | None = None
    tool_timeout: float | None = None
    journal: Path | None = None

    @property
    def beginning(self) -> str:
        return self.prompt if isinstance(self.prompt, str) else repr(self.prompt)

    async def __call__(self, host: Host) -> SearchResult:
        budget = copy.copy(self.budget)
        root = await host.decoder.root(self.prompt, self.sampling, budget)
        try:
            host.keep(root)
            scorer = self.scorer if self.make_scorer is None else self.make_scorer(host.decoder)
            run = SearchRun(
                root,
                journal=host.journal,
                scorer_timeout=self.scorer_timeout,
                tool_timeout=self.tool_timeout,
            )
            given = {} if scorer is None else {"scorer": scorer}
            return await self.strategy(run, **self.options, **given)
        finally:
            root.release()


Result = TypeVar("Result")


@dataclass(frozen=True)
class Ended(Generic[Result]):
    """The outcome of a search.

    Attributes:
        work: as it was given.
        value: what it returned; None after an error.
        error: what it raised, or an error about the actors that died during it.
        actor: the last one to run it, in words.
        deaths: number of actors that died while they ran it.
    """

    work: Work[Result]
    value: Result | None
    error: Exception | None
    actor: str
    deaths: int = 0

    def result(self) -> Result:
        """Returns the value, or raises the error."""
        if self.error is not None:
            raise self.error
        value: Any = self.value
        return value  # type: ignore[no-any-return]
