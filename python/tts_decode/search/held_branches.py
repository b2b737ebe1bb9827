"""The branches that a search holds: what each adds to the tree, and its fate."""

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
    """The branches that a search holds.

    A branch is held from its fork, or its prompt, until it is pruned or ends as a candidate; both release it
    at once, so that its pages are freed. The root stays the caller's.

    Attributes:
        candidates: those that ended so far; concurrent branches in the order of their `gather`, whichever was
            faster.
        held: the branches, in order. extra_roots: the branches of further prompts.
        record: the tree. journal: None: the search is not recorded.
        memory: samples of what was held. generated: tokens sampled.
    """

    def __init__(self, root: Branch, journal: Journal | None) -> None:
        self.root = root
        self.candidates: list[Candidate] = []
        self._ends: list[tuple[int, ...]] = []  # one per candidate, from `next_event`; ascending
        self.journal = journal
        self._agg_strategy = "last"
        self.record = TreeRecord()
        self.record.add_prompt(root)
        self.held: dict[Branch, None] = {}
        self.extra_roots: set[Branch] = set()
        self.memory: list[KVSample] = []
        self.generated = 0

    # -- what is known

    @property
    def tree(self) -> list[Node]:
        return self.record.nodes

    def node(self, branch: Branch) -> int:
        """Returns the id of the branch's last node."""
        return self.record.node(branch).id

    def aggregate_by(self, agg_strategy: str) -> None:
        """Sets how scores of a branch's steps become one, as in `select.aggregation`; "last" until set."""
        aggregation(agg_strategy)
        self._agg_strategy = agg_strategy

    def aggregated(self, branches: Sequence[Branch]) -> list[float]:
        return [aggregate(branch.scores, self._agg_strategy) for branch in branches]

    # -- branches

    def fork(self, branch: Branch, n: int = 1, at: int | None = None) -> list[Branch]:
        """Returns `n` forks of the branch, held by the run; its last node counts as kept.

        at: as in `Branch.fork`.
        """
        self.record_new_tokens(branch)
        children = branch.fork(n, at)
        if self.journal is not None:
            self.journal.follow(children, branch)
        for child in children:
            self.held[child] = None
            self.record.follow(child, branch)
            if branch in self.extra_roots:
                self.extra_roots.add(child)
        node = self.record.node(children[0])
        if node.status == "open":
            node.status = "kept"
        return children

    def truncate(self, branch: Branch, length: int) -> None:
        """Rolls the branch back to `length` tokens; a node that it leaves counts as pruned."""
        self.record_new_tokens(branch)
        node = self.record.node(branch)
        branch.truncate(length)
        self.record.cut(branch, length)
        if node is not self.record.node(branch) and node.status == "open":
            node.status = "pruned"

    def prune(self, branches: Sequence[Branch]) -> None:
        """Releases the branches; the last nodes of branches that were not forked count as pruned."""
        for branch in branches:
            self._check_held(branch)
        for branch in branches:
            self.record_new_tokens(branch)
            node = self.record.node(branch)
            if node.status == "open":
                node.status = "pruned"
            self.release(branch)

    def end(self, branch: Branch, score: float | None = None) -> Candidate:
        """Makes a candidate of the branch and releases it.

        score: ranks the candidates; default: the branch's scores, aggregated.
        """
        self._check_held(branch)
        if score is None and branch.scores:
            score = self.aggregated([branch])[0]
        self.record_new_tokens(branch)
        node = self.record.node(branch)
        candidate = Candidate(
            text=branch.text,
            tokens=tuple(branch.tokens[branch.prompt_length :]),
            logprob=branch.cum_logprob,
            score=score,
            scores=tuple(branch.scores),
            finish_reason=branch.finish_reason,
            node=node.id,
        )
        self.note_end(branch)
        event = next_event()
        place = bisect(self._ends, event)
        self._ends.insert(place, event)
        self.candidates.insert(place, candidate)
        self.release(branch)
        return candidate

    def keep_candidates(self, kept: Sequence[int]) -> None:
        """Drops all candidates except those at these ascending indices; their nodes stay in the tree."""
        self.candidates = [self.candidates[i] for i in kept]
        self._ends = [self._ends[i] for i in kept]

    def note_memory(self) -> None:
        """Samples what the search holds; call it after each forward, when tails are longest."""
        branches = [self.root, *self.held]
        decoders = {id(branch.decoder): branch.decoder for branch in branches}
        resident = sum(
            decoder.resident_bytes([branch for branch in branches if branch.decoder is decoder])
            for decoder in decoders.values()
        )
        logical = sum(branch.length for branch in branches)
        self.memory.append(KVSample(self.record.seconds, len(branches), logical, resident))

    # -- what becomes of branches

    def record_new_tokens(
        self, branch: Branch, made: Step | None = None, began: float | None = None
    ) -> Node | None:
        """Records sampled tokens that are in no node yet.

        They belong to the step `made`, or to one that was cancelled or is still running.
        """
        recorded = self.record.end(branch)
        grown = branch.length - recorded
        if not grown:
            return None
        self.generated += grown
        whole = made is not None and len(made.tokens) == grown
        text = made.text if made is not None and whole else branch.text_from(recorded)
        return self.record.add(branch, text, began=self.record.seconds if began is None else began)

    def note_end(self, branch: Branch) -> None:
        node = self.record.node(branch)
        if branch.finish_reason not in (None, "budget") and node.status != "prompt":
            node.status = "finished"

    def drop(self, branches: Sequence[Branch]) -> None:
        """Prunes those that are still held, as when the search ended first."""
        self.prune([branch for branch in branches if branch in self.held])

    def _check_held(self, branch: Branch) -> None:
        if branch not in self.held:
            raise ValueError(
                f"{branch!r} is not held by this search: it ended, was pruned, or is the root or another "
                "search's; fork it first"
            )

    def release(self, branch: Branch) -> None:
        del self.held[branch]
        self.extra_roots.discard(branch)
        self.record.forget(branch)
        if not branch.released:
            branch.release()
