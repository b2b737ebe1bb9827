"""The branches that a search holds: what each adds to the tree, and what becomes of it."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..core.running import next_event
from ..select import aggregate, aggregation
from .journal import Journal
from .record import TreeRecord
from .result import Candidate, KVSample
from .tree import Node

if TYPE_CHECKING:
    from ..core.interfaces import Branch
    from ..core.step import Step


class HeldBranches:
    """A branch is held from its fork, or its prompt, until it is pruned or ends as a candidate; both release
    it at once, so that its pages return. The root stays the caller's.

    Attributes:
        candidates: those that ended so far; of concurrent branches in the order of their `gather`, whichever
            was faster.
    """

    def __init__(self, root: Branch, journal: Journal | None) -> None:
        self.root = root
        self.candidates: list[Candidate] = []
        self._ends: list[tuple[int, ...]] = []  # one a candidate, as `next_event` gave it; ascending
        self._journal = journal
        self._agg_strategy = "last"
        self._record = TreeRecord()
        self._record.add_prompt(root)
        self._held: dict[Branch, None] = {}  # in order; ids of branches are their decoder's alone
        self._aside: set[Branch] = set()  # those of further prompts
        self._memory: list[KVSample] = []
        self._generated = 0

    # -- what is known

    @property
    def tree(self) -> list[Node]:
        return self._record.nodes

    def node(self, branch: Branch) -> int:
        """Id of the branch's last node."""
        return self._record.node(branch).id

    def aggregate_by(self, agg_strategy: str) -> None:
        """How the scores of a branch's steps become one, as `select.aggregation` says; "last" until set."""
        aggregation(agg_strategy)
        self._agg_strategy = agg_strategy

    def aggregated(self, branches: Sequence[Branch]) -> list[float]:
        return [aggregate(branch.scores, self._agg_strategy) for branch in branches]

    # -- branches

    def fork(self, branch: Branch, n: int = 1, at: int | None = None) -> list[Branch]:
        """`n` forks of the branch, held by the run; its last node counts as kept. at: as in `Branch.fork`."""
        self._settle(branch)
        children = branch.fork(n, at)
        if self._journal is not None:
            self._journal.follow(children, branch)
        for child in children:
            self._held[child] = None
            self._record.follow(child, branch)
            if branch in self._aside:
                self._aside.add(child)
        node = self._record.node(children[0])
        if node.status == "open":
            node.status = "kept"
        return children

    def truncate(self, branch: Branch, length: int) -> None:
        """Rolls the branch back to `length` tokens; a node that it leaves behind counts as pruned."""
        self._settle(branch)
        node = self._record.node(branch)
        branch.truncate(length)
        self._record.cut(branch, length)
        if node is not self._record.node(branch) and node.status == "open":
            node.status = "pruned"

    def prune(self, branches: Sequence[Branch]) -> None:
        """Release the branches; the last nodes of those that were not forked count as pruned."""
        for branch in branches:
            self._check_held(branch)
        for branch in branches:
            self._settle(branch)
            node = self._record.node(branch)
            if node.status == "open":
                node.status = "pruned"
            self._release(branch)

    def end(self, branch: Branch, score: float | None = None) -> Candidate:
        """Make a candidate of the branch and release it.

        score: what candidates are ranked by; default: the branch's scores, aggregated.
        """
        self._check_held(branch)
        if score is None and branch.scores:
            score = self.aggregated([branch])[0]
        self._settle(branch)
        node = self._record.node(branch)
        candidate = Candidate(
            text=branch.text,
            tokens=tuple(branch.tokens[branch.prompt_length :]),
            logprob=branch.cum_logprob,
            score=score,
            scores=tuple(branch.scores),
            finish_reason=branch.finish_reason,
            node=node.id,
        )
        self._note_end(branch)
        event = next_event()
        place = bisect(self._ends, event)
        self._ends.insert(place, event)
        self.candidates.insert(place, candidate)
        self._release(branch)
        return candidate

    def note_memory(self) -> None:
        """Sample what the search holds; for after each forward, when tails are longest."""
        branches = [self.root, *self._held]
        decoders = {id(branch.decoder): branch.decoder for branch in branches}
        resident = sum(
            decoder.resident_bytes([branch for branch in branches if branch.decoder is decoder])
            for decoder in decoders.values()
        )
        logical = sum(branch.length for branch in branches)
        self._memory.append(KVSample(self._record.seconds, len(branches), logical, resident))

    # -- what becomes of branches

    def _settle(self, branch: Branch, made: Step | None = None, began: float | None = None) -> Node | None:
        """Records sampled tokens that are in no node yet: of the step `made`, or of one that was cancelled or
        still runs."""
        recorded = self._record.end(branch)
        grown = branch.length - recorded
        if not grown:
            return None
        self._generated += grown
        whole = made is not None and len(made.tokens) == grown
        text = made.text if made is not None and whole else branch.text_from(recorded)
        return self._record.add(branch, text, began=self._record.seconds if began is None else began)

    def _note_end(self, branch: Branch) -> None:
        node = self._record.node(branch)
        if branch.finish_reason not in (None, "budget") and node.status != "prompt":
            node.status = "finished"

    def _drop(self, branches: Sequence[Branch]) -> None:
        """Prunes those that are still held: the search may have ended first."""
        self.prune([branch for branch in branches if branch in self._held])

    def _check_held(self, branch: Branch) -> None:
        if branch not in self._held:
            raise ValueError(
                f"{branch!r} is not held by this search: it ended, was pruned, or is the root or another "
                "search's; fork it first"
            )

    def _release(self, branch: Branch) -> None:
        del self._held[branch]
        self._aside.discard(branch)
        self._record.forget(branch)
        if not branch.released:
            branch.release()
