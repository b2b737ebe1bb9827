"""What every strategy does beside its algorithm: own branches, step, score, keep books, come to a result."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from tts_decode import gather
from tts_decode.rewards.scorer import Scorer, score_branches
from tts_decode.search.result import Candidate, SearchResult, SearchStats, Selection
from tts_decode.search.tree import Node
from tts_decode.select import AGG_STRATEGIES, aggregate, retained_nodes

if TYPE_CHECKING:
    from tts_decode.branch import Branch


class SearchRun:
    """One search from one root: `with SearchRun(...) as run`. On leaving, every branch it forked is released.

    A branch is held from `fork` on, until it is pruned or ends as a candidate; both release it at once, so
    that its pages return. The root stays the caller's.
    """

    def __init__(
        self,
        strategy: str,
        root: Branch,
        *,
        n: int,
        max_steps: int | None = None,
        temperature: float | None = None,
        agg_strategy: str = "last",
    ) -> None:
        require_at_least_one("n", n)
        if max_steps is not None:
            require_at_least_one("max_steps", max_steps)
        if agg_strategy not in AGG_STRATEGIES:
            raise ValueError(f"agg_strategy={agg_strategy!r}; expected one of {', '.join(AGG_STRATEGIES)}")
        self.strategy = strategy
        self.root = root
        self.agg_strategy = agg_strategy
        self.candidates: list[Candidate] = []
        self.tree = [Node(0, -1, root.full_text, root.length, status="prompt")]
        self._steps_left = max_steps
        self._sampling = {} if temperature is None else {"temperature": temperature}
        self._held: dict[int, Branch] = {}
        self._node = {root.id: 0}  # branch id -> its last node
        self._selections: list[Selection] = []
        self._generated = 0
        self._peak_bytes = 0
        self._started = time.perf_counter()

    def __enter__(self) -> SearchRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for branch in list(self._held.values()):
            self._release(branch)

    def fork(self, branch: Branch, n: int) -> list[Branch]:
        """`n` forks of the branch, held by the run; its last node counts as kept."""
        children = branch.fork(n)
        if self.tree[self._node[branch.id]].status == "open":
            self.tree[self._node[branch.id]].status = "kept"
        for child in children:
            self._held[child.id] = child
            self._node[child.id] = self._node[branch.id]
        return children

    def node(self, branch: Branch) -> int:
        """Id of the branch's last node."""
        return self._node[branch.id]

    async def step(self, branches: Sequence[Branch]) -> None:
        """One step each, to its own boundary; each becomes a node of the tree."""
        steps = await gather(branch.step(**self._sampling) for branch in branches)
        for branch, step in zip(branches, steps, strict=True):
            if step.tokens:
                self.add_node(branch, step.text, len(step.tokens))
        self.note_memory()

    def note_memory(self) -> None:
        """Let the peak know what the decoder holds; for after each forward, when tails are longest."""
        self._peak_bytes = max(self._peak_bytes, self.root.decoder.stats().resident_bytes)

    def add_node(self, branch: Branch, text: str, tokens: int) -> None:
        """Record that the branch grew by `tokens` tokens."""
        self._node[branch.id] = self._add(branch, text, tokens).id

    def add_leaf(self, branch: Branch, text: str, score: float) -> int:
        """Record a last token after the branch, which itself stays where it is; the id of the new node."""
        node = self._add(branch, text, 1)
        node.score, node.status = score, "finished"
        return node.id

    def _add(self, branch: Branch, text: str, tokens: int) -> Node:
        above = self.tree[self._node[branch.id]]
        if above.status == "open":
            above.status = "kept"
        node = Node(len(self.tree), above.id, text, tokens)
        self.tree.append(node)
        self._generated += tokens
        return node

    async def score(self, branches: Sequence[Branch], scorer: Scorer) -> None:
        """Append the scorer's value to each branch's scores."""
        for branch, score in zip(branches, await score_branches(scorer, branches), strict=True):
            branch.scores.append(score)
            self.tree[self._node[branch.id]].score = score

    def aggregated(self, branches: Sequence[Branch]) -> list[float]:
        return [aggregate(branch.scores, self.agg_strategy) for branch in branches]

    async def advance(self, live: Sequence[Branch], scorer: Scorer) -> list[Branch]:
        """One scored step of `live`; the branches that go on. Those that finished become candidates.

        Empty when the search is over: nothing left to extend, `max_steps` taken, or the budget used up.
        """
        await self.step(live)
        await self.score(live, scorer)
        for branch in live:
            if branch.finished:
                self.end(branch)
        if self._steps_left is not None:
            self._steps_left -= 1
        budget = self.root.budget
        if self._steps_left == 0 or (budget is not None and budget.exhausted):
            return []
        return [branch for branch in live if not branch.finished]

    def expand(self, live: Sequence[Branch], counts: Sequence[int]) -> list[Branch]:
        """Replace each branch by `counts[i]` forks of itself, in order; 0 prunes it."""
        children = []
        kept = [branch for branch, count in zip(live, counts, strict=True) if count]
        kv_tokens, kept_tokens = self._shared_tokens(live), self._shared_tokens(kept)
        for branch, count in zip(live, counts, strict=True):
            if count:
                children += self.fork(branch, count)
        self.prune(live)
        resident = self.root.decoder.stats().resident_bytes
        self._selections.append(Selection(len(live), len(kept), kv_tokens, kept_tokens, resident))
        return children

    def prune(self, branches: Sequence[Branch]) -> None:
        """Release the branches; the last nodes of those that were not forked count as pruned."""
        for branch in branches:
            node = self.tree[self._node[branch.id]]
            if node.status == "open":
                node.status = "pruned"
            self._release(branch)

    def charge(self, tokens: int) -> bool:
        """Take tokens that a strategy chose itself out of the budget; False, nothing taken, if too few."""
        budget = self.root.budget
        if budget is None:
            return True
        left = budget.remaining_tokens
        if budget.exhausted or (left is not None and left < tokens):
            return False
        budget.tokens_used += tokens
        return True

    def end(self, branch: Branch) -> None:
        """Make a candidate of the branch and release it."""
        node = self._node[branch.id]
        score = aggregate(branch.scores, self.agg_strategy) if branch.scores else None
        candidate = Candidate(
            text=branch.text,
            tokens=tuple(branch.tokens[branch.prompt_length :]),
            logprob=branch.cum_logprob,
            score=score,
            scores=tuple(branch.scores),
            finish_reason=branch.finish_reason,
            node=node,
        )
        if candidate.complete:
            self.tree[node].status = "finished"
        self.candidates.append(candidate)
        self._release(branch)

    def result(self, best: Candidate | None = None, votes: dict[str, float] | None = None) -> SearchResult:
        """The result; branches still held are candidates too, though not complete ones.

        The best candidate, unless given, is the highest score among the complete ones, or among all if none
        is complete; ties go to the one that ended first.
        """
        for branch in list(self._held.values()):
            self.end(branch)
        if best is None:
            best = max(self.candidates, key=_rank)
        stats = SearchStats(
            time.perf_counter() - self._started, self._generated, self._peak_bytes, tuple(self._selections)
        )
        return SearchResult(self.strategy, best, tuple(self.candidates), tuple(self.tree), stats, votes)

    def _release(self, branch: Branch) -> None:
        del self._held[branch.id]
        branch.release()

    def _shared_tokens(self, branches: Sequence[Branch]) -> int:
        """Tokens of the branches with every shared node once."""
        nodes = retained_nodes([node.parent for node in self.tree], [self._node[b.id] for b in branches])
        return sum(self.tree[node].tokens for node in nodes)


def _rank(candidate: Candidate) -> tuple[bool, bool, float]:
    """A candidate cut off before its first token ranks last, whatever a scorer makes of nothing."""
    score = -math.inf if candidate.score is None else candidate.score
    return candidate.complete, bool(candidate.tokens), score


def require_at_least_one(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}={value!r}; expected an integer")
    if value < 1:
        raise ValueError(f"{name}={value}; expected at least 1")
