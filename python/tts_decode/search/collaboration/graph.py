"""Collaboration graphs: which models are called for a question, and whose answers each call reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tts_kernels.checks import integer

ANSWERS = "assistant"
"""The role of a node without inputs."""


@dataclass(frozen=True)
class GraphNode:
    """One call of a model.

    Attributes:
        model: its name.
        role: the name of the prompt with which it reads answers. A node without inputs answers the question
            itself, and is an "assistant".
        inputs: places of the earlier nodes whose answers it reads, ascending.
    """

    model: str
    role: str = ANSWERS
    inputs: tuple[int, ...] = ()


@dataclass(frozen=True)
class CollaborationGraph:
    """Calls that answer a question together. Each reads only earlier ones, so there is no cycle.

    The last node's answer is the graph's. Every other node is read by a later one. Nodes side by side
    are parallel scaling, nodes in a row sequential scaling.

    Attributes:
        nodes: by place; None at a place that takes no part.

    Raises:
        ValueError: there is no last node, or inputs or a role do not fit.
    """

    nodes: tuple[GraphNode | None, ...]

    def __post_init__(self) -> None:
        if not self.nodes or self.nodes[-1] is None:
            raise ValueError(f"nodes: got {self.nodes!r}, expected a node at the last place, which answers")
        read = {len(self.nodes) - 1}
        for place, node in self.calls.items():
            there = [i for i in range(place) if self.nodes[i] is not None]
            for index in node.inputs:
                integer(f"nodes[{place}].inputs", index)
            if not set(node.inputs) <= set(there) or list(node.inputs) != sorted(set(node.inputs)):
                raise ValueError(
                    f"nodes[{place}].inputs: got {node.inputs!r}, expected distinct places out of {there}, "
                    "ascending: a node reads only earlier ones, which keeps cycles out"
                )
            if not node.inputs and node.role != ANSWERS:
                raise ValueError(
                    f"nodes[{place}].role: got {node.role!r} of a node without inputs, expected {ANSWERS!r}"
                )
            read.update(node.inputs)
        if unread := sorted(self.calls.keys() - read):
            raise ValueError(f"nodes: got no reader of nodes {unread}, expected one of each but the last")

    @property
    def calls(self) -> dict[int, GraphNode]:
        """Returns the nodes that take part, by place, in order."""
        return {place: node for place, node in enumerate(self.nodes) if node is not None}

    @property
    def models(self) -> set[str]:
        return {node.model for node in self.calls.values()}

    def price(self, prices: Mapping[str, float] | None = None) -> float:
        """Returns the sum of the prices of its calls, by model; None: 1 each."""
        return float(sum(1 if prices is None else prices[node.model] for node in self.calls.values()))

    def longest_path(self, lengths: Mapping[int, float]) -> float:
        """Returns the length of the longest chain of nodes that wait for each other, given theirs."""
        until: dict[int, float] = {}
        for place, node in self.calls.items():
            until[place] = lengths.get(place, 0) + max((until[i] for i in node.inputs), default=0)
        return until[len(self.nodes) - 1]

    def __str__(self) -> str:
        """Returns, for example, "0 small; 1 small; 2 large, fuser of 0, 1"."""
        texts = []
        for place, node in self.calls.items():
            reads = f", {node.role} of {', '.join(map(str, node.inputs))}" if node.inputs else ""
            texts.append(f"{place} {node.model}{reads}")
        return "; ".join(texts)
