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
        journal: of this search, with what an earlier run of it had computed; None where none is kept.
    """

    decoder: TreeDecoder
    journal: Journal | None

    def keep(self, root: TreeBranch) -> None:
        """The prompt may stay resident when the search is over, for others that begin with it."""


class Work(Protocol[T]):
    """A search as it is sent to an actor: it and all that it holds can be pickled.

    Attributes:
        beginning: text by which searches with the same prefix find the same actor.
        journal: the journal's file on the machine of the pool; None: none is kept.
    """

    @property
    def beginning(self) -> str: ...

    @property
    def journal(self) -> Path | None: ...

    async def __call__(self, host: Host) -> T:
        """Runs on the actor. What it comes to hangs on nothing but itself and the model: it may run again."""


@dataclass(frozen=True)
class PooledSearch:
    """One search of a strategy on one prompt.

    Attributes:
        prompt: as `TreeDecoder.root` takes it.
        options: of the strategy.
        sampling: its seed is all of the search's randomness; None: the decoder's.
        budget: its limits; each run begins with none of it used.
        scorer: for strategies that take one.
        make_scorer: makes it there, of the actor's decoder.
        scorer_timeout, tool_timeout: as of `SearchRun`.
        journal: the file to keep it in; its folder exists.
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
    """What a search came to.

    Attributes:
        work: as it was given.
        value: what it returned; None after an error.
        error: that it raised, or that tells of the actors that died of it.
        actor: that ran it last, in words.
        deaths: of actors while they ran it.
    """

    work: Work[Result]
    value: Result | None
    error: Exception | None
    actor: str
    deaths: int = 0

    def result(self) -> Result:
        """The value. Raises the error."""
        if self.error is not None:
            raise self.error
        value: Any = self.value
        return value  # type: ignore[no-any-return]
