"""The record of a running search: the tree of its nodes, and each branch's place in it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from ..core.running import next_event
from .tree import Node

if TYPE_CHECKING:
    from ..core.interfaces import Branch

Span = tuple[int, int]  # a node on a branch's path, and the position in the branch's tokens where it ends


class TreeRecord:
    """The nodes of a search, and the path of each branch: its tokens are those of its path in order.

    A node never changes once a branch grew beyond it: a branch cut inside a node continues with a new one
    below that node, whose `at` says how much of the node it took.
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._events: list[tuple[int, ...]] = []  # one per node, from `next_event`
        self._paths: dict[Branch, list[Span]] = {}  # the prompt first
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since the search began."""
        return time.perf_counter() - self._started

    def add_prompt(self, branch: Branch, sources: Iterable[int] = ()) -> None:
        """Adds a root of the tree. What a caller's root generated earlier is part of its prompt here."""
        now = self.seconds
        node = Node(len(self.nodes), -1, branch.full_text, tuple(branch.tokens), status="prompt")
        node.question = branch.question
        node.sources, node.began, node.ended = tuple(sources), now, now
        self._append(node)
        self._paths[branch] = [(node.id, branch.length)]

    def add(self, branch: Branch, text: str, *, began: float, forced: bool = False) -> Node:
        """Adds a node after the branch grew: the tokens beyond the end of its path."""
        path = self._paths[branch]
        end = path[-1][1]
        grown = len(branch.tokens) - end
        node = self.add_below(
            branch,
            text,
            tuple(branch.tokens[end:]),
            tuple(branch.logprobs[len(branch.logprobs) - grown :]),
            tuple(branch.entropies[len(branch.entropies) - grown :]),
        )
        node.forced, node.began = forced, began
        ends = tuple(branch.text_ends(end))
        if ends[-1:] == (len(text),):  # false for a forced text with special tokens, which no end counts
            node.ends = ends
        path.append((node.id, branch.length))
        return node

    def add_below(
        self,
        branch: Branch,
        text: str,
        tokens: tuple[int, ...],
        logprobs: tuple[float, ...] = (),
        entropies: tuple[float, ...] = (),
    ) -> Node:
        """Adds a node below the branch's last one; the branch itself stays where it is."""
        path = self._paths[branch]
        above, taken = self.nodes[path[-1][0]], path[-1][1] - (path[-2][1] if len(path) > 1 else 0)
        if above.status in ("open", "pruned"):
            above.status = "kept"
        at = None if taken == len(above.tokens) else taken
        node = Node(len(self.nodes), above.id, text, tokens, logprobs, entropies, at)
        node.began = node.ended = self.seconds
        self._append(node)
        return node

    def follow(self, child: Branch, parent: Branch) -> None:
        """Registers `child`, which was forked from `parent`, perhaps at a past token."""
        self._paths[child] = list(self._paths[parent])
        self.cut(child, child.length)

    def cut(self, branch: Branch, length: int) -> None:
        """Cuts the branch to `length` tokens."""
        path = self._paths[branch]
        while len(path) > 1 and path[-2][1] >= length:
            path.pop()
        path[-1] = (path[-1][0], min(path[-1][1], length))

    def forget(self, branch: Branch) -> None:
        del self._paths[branch]

    def node(self, branch: Branch) -> Node:
        """Returns the branch's last node."""
        return self.nodes[self._path(branch)[-1][0]]

    def end(self, branch: Branch) -> int:
        """Returns how many of the branch's tokens are in nodes."""
        return self._path(branch)[-1][1]

    def ordered(self) -> tuple[list[Node], list[int]]:
        """Returns renumbered copies of the nodes, and the new id of each node.

        The order does not depend on which of several concurrent branches was faster.
        """
        ids = [-1] * len(self.nodes)
        order: list[Node] = []
        for index in sorted(range(len(self.nodes)), key=self._events.__getitem__):
            above = [self.nodes[index]]
            while above[-1].parent >= 0 and ids[above[-1].parent] < 0:  # a parent always comes first
                above.append(self.nodes[above[-1].parent])
            for node in reversed(above):
                if ids[node.id] < 0:
                    ids[node.id] = len(order)
                    order.append(node)
        renumbered = [
            replace(
                node,
                id=ids[node.id],
                parent=-1 if node.parent < 0 else ids[node.parent],
                sources=tuple(ids[source] for source in node.sources),
            )
            for node in order
        ]
        return renumbered, ids

    def shared_tokens(self, branches: Iterable[Branch]) -> int:
        """Returns the number of tokens of the branches, counting shared ones once."""
        taken: dict[int, int] = {}  # node -> the most of its tokens that a branch takes
        for branch in branches:
            begin = 0
            for node, end in self._paths[branch]:
                taken[node] = max(taken.get(node, 0), end - begin)
                begin = end
        return sum(taken.values())

    def _append(self, node: Node) -> None:
        self.nodes.append(node)
        self._events.append(next_event())

    def _path(self, branch: Branch) -> list[Span]:
        if branch not in self._paths:
            raise ValueError(f"{branch!r} is not of this search, or was given up: fork one that it holds")
        return self._paths[branch]
