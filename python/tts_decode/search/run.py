"""What every search does alike: holds branches, records its tree, keeps accounts, cleans up."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from tts_kernels.checks import number

from ..core.checks import at_least
from ..errors import ConstraintError, ScorerError
from ..rewards.scorer import Scorer, score_branches
from ..select import extract_answer
from .blocking import wait_within
from .decisions import Decision, check_decision
from .journal import Journal
from .meaning import Extract
from .model_calls import ModelCalls, SearchStoppedError
from .result import Candidate, SearchResult, SearchStats, Selection

if TYPE_CHECKING:
    from ..core.interfaces import Branch

T = TypeVar("T")


class SearchRun(ModelCalls):
    """One search from one root: what a strategy works with.

    A branch is held from `fork` or `prompt` on, until it is pruned or ends as a candidate; both release it at
    once, so that its pages are freed. The root stays the caller's. `HeldBranches` has the methods on
    branches, and `ModelCalls` those that wait for the model.

    Args:
        root: where the search begins.
        journal: keeps what engine and scorers return, so that the search can be resumed.
        scorer_timeout: seconds that a call of a scorer may take; None: what the budget leaves. A scorer that
            takes longer, or raises, ends the search with what it has; so does one that blocks its thread.
            With a limit, a scorer's code runs on its own thread while the event loop waits.
        tool_timeout: the same for each call of a tool, a retriever or another function of the caller. A
            tool's timeout is reported as its output, and the search continues.

    Attributes:
        rng: for the strategy's own draws; seeded with the root's seed.
        candidates: those that ended so far.
        stopped: why the search ended early.
    """

    def __init__(
        self,
        root: Branch,
        *,
        journal: Journal | None = None,
        scorer_timeout: float | None = None,
        tool_timeout: float | None = None,
    ) -> None:
        for name, seconds in (("scorer_timeout", scorer_timeout), ("tool_timeout", tool_timeout)):
            if seconds is not None:
                number(name, seconds, above=0, what="a number of seconds")
        if not callable(getattr(root, "fork", None)):
            raise TypeError(
                f"root: got {type(root).__name__}, expected a branch, as `await decoder.root(prompt)` makes"
            )
        super().__init__(root, journal)
        self.rng = random.Random(root.seed)
        self.stopped: str | None = None
        self.strategy = ""
        self._scorer_timeout, self._tool_timeout = scorer_timeout, tool_timeout
        self._decision = Decision()
        self._steps_left: int | None = None
        self._selections: list[Selection] = []

    @contextmanager
    def of(self, strategy: str, options: Mapping[str, object]) -> Iterator[None]:
        """Spans the search. On leaving, every branch that it holds is released."""
        if self.strategy:
            raise RuntimeError(
                f"this SearchRun served {self.strategy} already: make one for each search, or call "
                f"{strategy}.body to go on in it"
            )
        self.strategy = strategy
        try:
            if self.journal is not None:
                self.journal.begin(strategy, options, self.root)
            yield
        finally:
            for branch in list(self.held):
                self.release(branch)
            if self.journal is not None:
                self.journal.close()

    # -- what it knows

    @property
    def question(self) -> str:
        """The user's question: a chat user's last message, or the prompt's text."""
        return self.root.question

    @property
    def over(self) -> bool:
        """Whether the budget is used up: every further step would return at once, empty."""
        return self.root.budget is not None and self.root.budget.exhausted

    def check_room(self) -> None:
        """Ends the search if the root leaves no position for an answer."""
        limit = self.root.decoder.max_positions
        if limit is not None and self.root.length >= limit:
            raise SearchStoppedError(
                f"the root's {self.root.length} tokens fill the model's {limit} positions"
            )

    def refuse_constraint(self, strategy: str, why: str) -> None:
        """Raises ConstraintError if the root has a constraint, for a strategy that could not obey one.

        Args:
            why: what the strategy does; follows its name in the message.
        """
        if self.root.sampling.constraint is not None:
            raise ConstraintError(
                f"constraint: got one, expected None: {strategy} {why}; search without it, or by a strategy "
                "that only samples, such as best_of_n"
            )

    # -- how it ends

    def decide_by(self, decide_by: str, extract: Extract = extract_answer, *own: str) -> None:
        """Sets which candidate `result` takes, as in `Decision`; "max" until set.

        Args:
            own: rules of the strategy itself, which then gives `result` its best; if the search is cut short,
                "max" replaces them.
        """
        check_decision(decide_by, *own)
        self._decision = Decision("max" if decide_by in own else decide_by, extract)

    # -- scores

    async def score(self, branches: Sequence[Branch], scorer: Scorer) -> list[float]:
        """Appends the scorer's value to each branch's scores. A failing scorer ends the search."""
        if not branches:
            return []
        scores = await self.numbers(branches, lambda: self._scored(branches, scorer))
        for branch, score in zip(branches, scores, strict=True):
            branch.scores.append(score)
            self.record.node(branch).score = score
        return scores

    async def _scored(self, branches: Sequence[Branch], scorer: Scorer) -> list[float]:
        name = getattr(scorer, "__name__", type(scorer).__name__)
        late = f"scorer {name} gave no scores"
        return await self._in_time(self._scorer_timeout, _scores(scorer, branches), late)

    async def tool_in_time(self, name: str, call: Coroutine[Any, Any, T]) -> T:
        """Returns the result of the caller's own function; raises SearchStoppedError if it takes too long.

        Args:
            name: of the option.
        """
        return await self._in_time(self._tool_timeout, call, f"{name} gave nothing")

    async def _in_time(self, limit: float | None, call: Coroutine[Any, Any, T], late: str) -> T:
        """Returns the call's result; raises SearchStoppedError, with `late`, after the limit.

        The budget's seconds limit it too.
        """
        limits = [] if limit is None else [limit]
        budget = self.root.budget
        if budget is not None and budget.max_seconds is not None:
            limits.append(max(0.0, budget.max_seconds - budget.seconds_used))
        if not limits:
            return await call
        seconds = min(limits)
        began = time.monotonic()
        try:
            return await wait_within(seconds, call)
        except (asyncio.TimeoutError, SearchStoppedError):
            if time.monotonic() - began < seconds:  # the call raised it
                raise
            raise SearchStoppedError(self._spent or f"{late} within {seconds:g} s") from None

    # -- search step by step

    def limit_steps(self, max_steps: int) -> None:
        """Makes `advance` end the search after `max_steps` steps."""
        at_least(1, max_steps=max_steps)
        self._steps_left = max_steps

    async def advance(self, live: Sequence[Branch], scorer: Scorer) -> list[Branch]:
        """Runs one scored step of `live`; returns the branches that continue. Others become candidates.

        Empty when the search is over: nothing is left to extend, `max_steps` are taken, or the budget is used
        up.
        """
        await self.step(live)
        await self.score(live, scorer)
        for branch in live:
            if branch.finished:
                self.end(branch)
        if self._steps_left is not None:
            self._steps_left -= 1
        if self._steps_left == 0 or self.over:
            return []
        return [branch for branch in live if not branch.finished]

    def expand(self, live: Sequence[Branch], counts: Sequence[int]) -> list[Branch]:
        """Replaces each branch by `counts[i]` forks of itself, in order; 0 prunes it."""
        children = []
        kept = [branch for branch, count in zip(live, counts, strict=True) if count]
        kv_tokens, kept_tokens = self.record.shared_tokens(live), self.record.shared_tokens(kept)
        for branch, count in zip(live, counts, strict=True):
            if count:
                children += self.fork(branch, count)
        self.prune(live)
        resident = self.root.decoder.stats().resident_bytes
        self._selections.append(Selection(len(live), len(kept), kv_tokens, kept_tokens, resident))
        self.note_memory()
        return children

    # -- tokens that a strategy chooses itself

    def charge(self, tokens: int) -> bool:
        """Takes tokens out of the budget; returns False, and takes nothing, if too few are left."""
        budget = self.root.budget
        if budget is not None:
            left = budget.remaining_tokens
            if budget.exhausted or (left is not None and left < tokens):
                return False
            budget.tokens_used += tokens
        return True

    def add_leaf(self, branch: Branch, token: int, logprob: float, score: float) -> int:
        """Records a last token after the branch, which itself does not change; returns the new node's id."""
        text = branch.text_of([token])
        node = self.record.add_below(branch, text, (token,), (logprob,))
        node.score, node.status = score, "finished"
        self.generated += 1
        return node.id

    # -- the end

    def stop(self, error: Exception) -> None:
        """Records why the search ended early."""
        self.stopped = str(error)

    async def result(
        self, best: Candidate | None = None, votes: dict[str, float] | None = None
    ) -> SearchResult:
        """Returns the result; branches still held become candidates too, though incomplete ones.

        Branches of further prompts do not, unless they were ended. The best candidate and the votes, unless
        given, come from `decide_by` over all candidates.
        """
        for branch in list(self.held):
            if branch not in self.extra_roots:
                self.end(branch)
        if not self.candidates:  # stopped before the first fork
            self.end(self.fork(self.root)[0])
        if best is None or votes is None:
            chosen, cast = await self._decision(self.candidates)
            best, votes = best or self.candidates[chosen], cast if votes is None else votes
        nodes, ids = self.record.ordered()
        best, *candidates = (
            replace(candidate, node=ids[candidate.node]) for candidate in (best, *self.candidates)
        )
        decoder = self.root.decoder.stats()
        stats = SearchStats(
            self.record.seconds,
            self.generated,
            tuple(self.memory),
            tuple(self._selections),
            decoder.page_size,
            decoder.page_bytes,
        )
        return SearchResult(
            self.strategy,
            best,
            tuple(candidates),
            tuple(nodes),
            stats,
            votes,
            self.stopped or self._spent or self.cut_prompt,
        )

    @property
    def _spent(self) -> str | None:
        spent = None if self.root.budget is None else self.root.budget.spent
        return None if spent is None else f"the budget's {spent} is used up"


async def _scores(scorer: Scorer, branches: Sequence[Branch]) -> list[float]:
    try:
        return await score_branches(scorer, branches)
    except ScorerError as error:
        raise SearchStoppedError(str(error)) from error
