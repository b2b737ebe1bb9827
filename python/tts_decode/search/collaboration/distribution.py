"""A distribution over collaboration graphs with explicit probabilities, and how REINFORCE moves it."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tts_kernels.checks import number

from ...core.checks import at_least
from .graph import ANSWERS, CollaborationGraph, GraphNode

K = TypeVar("K", bound=Hashable)
Part = tuple[str, int, "str | int"]
"""One parameter: "reads", "role" or "model", the node's place, and the place that it reads or the name."""


@dataclass(frozen=True)
class GraphDistribution:
    """Probabilities of each node's inputs, role and model, all independent.

    A graph is drawn backwards from its last node, which draws its model, its inputs and, if it has any, its
    role. So does each earlier node that is read. A node that is not read takes no part, and nothing
    is drawn for it. So a graph may be smaller, and its probability is the product of what was drawn.

    A probability of 0 or 1 stays: it excludes or prescribes a part of all graphs.

    Attributes:
        reads: reads[j][i] is the probability that node j reads node i; j entries for node j.
        roles, models: probabilities by name, for each node.

    Raises:
        ValueError: numbers of nodes do not fit, or probabilities are outside [0, 1] or do not add up to 1.
    """

    reads: Sequence[Sequence[float]]
    roles: Sequence[Mapping[str, float]]
    models: Sequence[Mapping[str, float]]

    def __post_init__(self) -> None:
        nodes = len(self.reads)
        if not nodes or len(self.roles) != nodes or len(self.models) != nodes:
            raise ValueError(
                f"reads, roles, models: got {nodes}, {len(self.roles)} and {len(self.models)} nodes, "
                "expected as many in each, one or more"
            )
        for j, row in enumerate(self.reads):
            if len(row) != j:
                raise ValueError(
                    f"reads[{j}]: got {len(row)} entries, expected {j}, one for each earlier node"
                )
            for i, p in enumerate(row):
                number(f"reads[{j}][{i}]", p, low=0, high=1)
            for name, table in (("roles", self.roles[j]), ("models", self.models[j])):
                total = math.fsum(number(f"{name}[{j}][{key!r}]", p, low=0) for key, p in table.items())
                if not math.isclose(total, 1, abs_tol=1e-6):
                    raise ValueError(f"{name}[{j}]: got a sum of {total:g}, expected 1")

    @classmethod
    def uniform(
        cls,
        num_nodes: int,
        models: Sequence[str],
        *,
        roles: Sequence[str] = (ANSWERS, "fuser"),
        p_read: float = 0.5,
    ) -> GraphDistribution:
        """Returns one where every model and every role is as probable as the others.

        Args:
            p_read: probability that a node reads an earlier one.
        """
        at_least(1, num_nodes=num_nodes)
        for name, given in (("models", models), ("roles", roles)):
            if not given:
                raise ValueError(f"{name}: got none, expected one or more")
        return cls(
            tuple((p_read,) * j for j in range(num_nodes)),
            tuple(dict.fromkeys(roles, 1 / len(set(roles))) for _ in range(num_nodes)),
            tuple(dict.fromkeys(models, 1 / len(set(models))) for _ in range(num_nodes)),
        )

    def draw(self, rng: random.Random) -> CollaborationGraph:
        nodes: list[GraphNode | None] = [None] * len(self.reads)
        read = {len(nodes) - 1}
        for j in reversed(range(len(nodes))):
            if j in read:
                inputs = tuple(i for i, p in enumerate(self.reads[j]) if rng.random() < p)
                model = _drawn(self.models[j], rng)
                nodes[j] = GraphNode(model, _drawn(self.roles[j], rng) if inputs else ANSWERS, inputs)
                read.update(inputs)
        return CollaborationGraph(tuple(nodes))

    def probability(self, graph: CollaborationGraph) -> float:
        p = 1.0
        for j, node in graph.calls.items():
            p *= self.models[j].get(node.model, 0.0)
            p *= self.roles[j].get(node.role, 0.0) if node.inputs else 1.0
            for i, q in enumerate(self.reads[j]):
                p *= q if i in node.inputs else 1 - q
        return p

    def gradient(self, graph: CollaborationGraph) -> dict[Part, float]:
        """Returns the derivatives of the logarithm of a graph's probability by the logits.

        A part that was not drawn for the graph has none.
        """
        slopes: dict[Part, float] = {}
        for j, node in graph.calls.items():
            slopes |= {("reads", j, i): (i in node.inputs) - q for i, q in enumerate(self.reads[j])}
            slopes |= {("model", j, name): (name == node.model) - q for name, q in self.models[j].items()}
            if node.inputs:
                slopes |= {("role", j, name): (name == node.role) - q for name, q in self.roles[j].items()}
        return slopes

    def moved(self, steps: Mapping[Part, float]) -> GraphDistribution:
        """Returns the distribution whose logits are higher by `steps`."""

        def named(kind: str, j: int, table: Mapping[str, float]) -> dict[str, float]:
            return _tilted(table, {name: steps.get((kind, j, name), 0.0) for name in table})

        return GraphDistribution(
            tuple(
                tuple(
                    _tilted({1: q, 0: 1 - q}, {1: steps.get(("reads", j, i), 0.0), 0: 0.0})[1]
                    for i, q in enumerate(row)
                )
                for j, row in enumerate(self.reads)
            ),
            tuple(named("role", j, table) for j, table in enumerate(self.roles)),
            tuple(named("model", j, table) for j, table in enumerate(self.models)),
        )

    def __str__(self) -> str:
        """Returns a line for each node, such as "1: small 0.50, large 0.50; fuser 1.00; reads 0 0.50"."""
        lines = []
        for j, row in enumerate(self.reads):
            parts = [_listed(self.models[j])]
            if row:
                parts += [_listed(self.roles[j]), f"reads {_listed(dict(enumerate(row)))}"]
            lines.append(f"{j}: {'; '.join(parts)}")
        return "\n".join(lines)


def reinforce(
    distribution: GraphDistribution,
    graphs: Sequence[CollaborationGraph],
    utilities: Sequence[float],
    learning_rate: float,
) -> GraphDistribution:
    """Returns the distribution after a step along REINFORCE's estimate of the gradient of the mean utility.

    Williams, "Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning",
    1992. The baseline of a graph is the mean utility of the others. It makes the estimate unbiased even if
    graphs over a limit were drawn again. The mean is then the one over graphs within the limit, whose
    probability, which is not known, cancels.

    Args:
        graphs: independent draws, two or more.
    """
    count, total = len(graphs), math.fsum(utilities)
    steps: defaultdict[Part, float] = defaultdict(float)
    for graph, utility in zip(graphs, utilities, strict=True):
        advantage = utility - (total - utility) / (count - 1)
        for part, slope in distribution.gradient(graph).items():
            steps[part] += learning_rate * advantage * slope / count
    return distribution.moved(steps)


def _drawn(table: Mapping[str, float], rng: random.Random) -> str:
    return rng.choices(list(table), list(table.values()))[0]


def _tilted(table: Mapping[K, float], steps: Mapping[K, float]) -> dict[K, float]:
    """Returns probabilities times exp(step), normalised."""
    most = max(steps[key] for key, p in table.items() if p)  # the largest exponent is 0: no overflow
    weights = {key: p * math.exp(min(0.0, steps[key] - most)) for key, p in table.items()}
    total = math.fsum(weights.values())
    return {key: weight / total for key, weight in weights.items()}


def _listed(table: Mapping[K, float]) -> str:
    return ", ".join(f"{key} {p:.2f}" for key, p in table.items())
