"""Nodes of a Monte Carlo tree search over steps, and the simulations that grow the tree."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ...rewards.scorer import Scorer
from ..result import Candidate, SearchResult
from ..run import SearchRun

if TYPE_CHECKING:
    from ...core.interfaces import Branch


@dataclass(eq=False)
class TreeNode:
    """A partial answer.

    Attributes:
        branch: the branch that ends here, as long as the node has no children and is not terminal: an
            expanded branch lives on in its children, which share its KV.
        score: the scorer's value when it was made.
        logprob: mean log-probability of its step's tokens, nats; NaN if the engine does not report it.
        visits, total: number of simulations that passed through and returned, and the sum of their values.
        pending: simulations that are passing through.
        candidate: for a terminal node, its answer, or one cut off at the depth limit.
    """

    branch: Branch | None
    parent: TreeNode | None = None
    score: float = 0.0
    logprob: float = 0.0
    candidate: Candidate | None = None
    children: list[TreeNode] = field(default_factory=list)
    visits: int = 0
    total: float = 0.0
    pending: int = 0
    depth: int = field(init=False)

    def __post_init__(self) -> None:
        self.depth = 0 if self.parent is None else self.parent.depth + 1
        if self.parent is not None:
            self.parent.children.append(self)

    @property
    def terminal(self) -> bool:
        return self.candidate is not None

    @property
    def value(self) -> float:
        """Mean value of the returned simulations; the score before the first one."""
        return self.total / self.visits if self.visits else self.score

    def up(self) -> list[TreeNode]:
        """Returns the node and those above it, the root last."""
        nodes, node = [], self
        while True:
            nodes.append(node)
            if node.parent is None:
                return nodes
            node = node.parent

    def back_up(self, value: float) -> None:
        """Adds `value`, returned by a simulation that ended here, to the path."""
        for node in self.up():
            node.visits += 1
            node.total += value


Select = Callable[[TreeNode], int]
"""Returns the index of the child that a simulation continues to. `visits + pending` counts simulations; the
node's own count includes the calling one."""
Expand = Callable[[Sequence[TreeNode]], Awaitable[None]]
"""Gives each of the nodes its children."""
Simulate = Callable[[Sequence[TreeNode]], Awaitable[list[float]]]
"""Returns values of leaves beyond which the tree itself does not grow."""


async def grow(
    run: SearchRun,
    root: TreeNode,
    n: int,
    select: Select,
    expand: Expand,
    *,
    parallel: int = 1,
    simulate: Simulate | None = None,
) -> None:
    """Runs `n` simulations, `parallel` at a time, which take each step in one shared forward.

    Each goes from the root by `select` to a leaf, which is expanded. Without `simulate` it continues in the
    same way down to a terminal node, whose score is its value; with it, it takes one more step, and
    `simulate` returns the value. Pending simulations already count as visits, though without a value (Liu et
    al., "Watch the Unobserved", arXiv 1810.11755): a virtual loss that needs no scale.
    """
    while n > 0 and not run.over:
        count = min(parallel, n)
        n -= count
        leaves = []
        for _ in range(count):
            root.pending += 1
            leaves.append(_descend(root, select))
        while growing := _distinct(leaf for leaf in leaves if not leaf.terminal):
            await expand(growing)
            if run.over:
                return
            leaves = [_descend(leaf, select) for leaf in leaves]
            if simulate is not None:
                break
        values = [leaf.score for leaf in leaves]
        if simulate is not None:
            values = await simulate(leaves)
        for leaf, value in zip(leaves, values, strict=True):
            for node in leaf.up():
                node.pending -= 1
            leaf.back_up(value)


def _descend(node: TreeNode, select: Select) -> TreeNode:
    while node.children:
        node = node.children[select(node)]
        node.pending += 1
    return node


def _distinct(nodes: Iterable[TreeNode]) -> list[TreeNode]:
    return list(dict.fromkeys(nodes))


async def add_children(
    run: SearchRun, scorer: Scorer, families: Sequence[tuple[TreeNode, Sequence[Branch]]], max_depth: int
) -> None:
    """Makes children of branches that are one step beyond their node, scores them, ends finished ones.

    A step that a sibling already took word for word is pruned (as in openr): it would be the same state.
    """
    fresh: list[tuple[TreeNode, Branch]] = []
    for node, branches in families:
        seen: dict[tuple[str, bool], Branch] = {}
        for branch in branches:
            seen.setdefault((branch.text, branch.finished), branch)
        run.prune([branch for branch in branches if branch not in seen.values()])
        fresh += [(node, branch) for branch in seen.values()]
    scores = await run.score([branch for _, branch in fresh], scorer)
    for (node, branch), score in zip(fresh, scores, strict=True):
        logprobs = run.tree[run.node(branch)].logprobs
        child = TreeNode(branch, node, score, math.fsum(logprobs) / max(len(logprobs), 1))
        if branch.finished or child.depth >= max_depth:
            child.candidate = run.end(branch)
            child.branch = None
    for node, _ in families:
        release(run, [node])


def release(run: SearchRun, nodes: Sequence[TreeNode]) -> None:
    """Releases the branches of nodes that will not be forked again."""
    for node in nodes:
        if node.branch is not None:
            run.prune([node.branch])
            node.branch = None


def leaves_of(root: TreeNode) -> list[TreeNode]:
    """Returns the leaves that a search could expand, from left to right."""
    if root.children:
        return [leaf for child in root.children for leaf in leaves_of(child)]
    return [] if root.terminal else [root]


def most_visited(root: TreeNode) -> TreeNode:
    """Returns the end of the path that follows each node's most visited child (ties: the better value)."""
    node = root
    while node.children:
        node = max(node.children, key=lambda child: (child.visits, child.value))
    return node


async def conclude(
    run: SearchRun, root: TreeNode, scorer: Scorer, *, by_visits: bool = False
) -> SearchResult:
    """Returns the result of a search that grew the tree of `root`: its best-scored or most visited answer.

    Leaves that it did not expand are pruned, unless the budget ended it: then they are candidates. A search
    that found no answer completes the most visited path.
    """
    if not run.over:
        end = most_visited(root)
        if end.branch is not None and not any(c.complete for c in run.candidates):
            await run.complete(end.branch)
            end.score = (await run.score([end.branch], scorer))[0]
            end.candidate, end.branch = run.end(end.branch), None
        release(run, leaves_of(root))
    best = most_visited(root).candidate if by_visits else None
    if best is not None and not best.complete:
        best = None
    return await run.result(best)
