"""Agent-REINFORCE: searches for a good collaboration graph by learning a distribution over graphs."""

from __future__ import annotations

import inspect
import math
import random
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from tts_kernels.checks import any_integer, instance, number

from ...core.checks import at_least
from ...core.running import gather
from .distribution import GraphDistribution, reinforce
from .graph import CollaborationGraph
from .trials import GraphTrial, by_model

_MOST_DRAWS = 1000  # of a graph within the price


@dataclass(frozen=True)
class GraphRound:
    """One round: the graphs that were drawn, and what they were worth.

    Attributes:
        distribution: that the graphs were drawn from.
        trials, utilities: one a draw; a graph that is drawn again has its first trial.
    """

    distribution: GraphDistribution
    trials: tuple[GraphTrial, ...]
    utilities: tuple[float, ...]


@dataclass
class GraphArchive:
    """What an agent is shown: the distribution in force, the rounds so far, and the limit on graphs.

    Attributes:
        distribution: from which the next round draws; after the search, what it learnt.
        prices, max_price: as in `search_graphs`.
    """

    distribution: GraphDistribution
    rounds: list[GraphRound] = field(default_factory=list)
    prices: Mapping[str, float] | None = None
    max_price: float | None = None

    @property
    def measured(self) -> dict[CollaborationGraph, tuple[float, GraphTrial]]:
        """Returns utility and trial of each graph that was measured, in order."""
        found: dict[CollaborationGraph, tuple[float, GraphTrial]] = {}
        for drawn in self.rounds:
            for utility, trial in zip(drawn.utilities, drawn.trials, strict=True):
                found.setdefault(trial.graph, (utility, trial))
        return found

    @property
    def trials(self) -> list[GraphTrial]:
        return [trial for _, trial in self.measured.values()]

    @property
    def best(self) -> GraphTrial | None:
        """Returns the trial with the highest utility; among equals the cheapest, then the first."""
        ranked = sorted(self.measured.values(), key=lambda found: (-found[0], found[1].cost))
        return ranked[0][1] if ranked else None

    def report(self) -> str:
        """Returns a Markdown table of the trials; the best in bold."""
        lines = ["| graph | utility | score | tokens | cost | latency |", "|---" * 6 + "|"]
        for utility, trial in self.measured.values():
            mark = "**" if trial is self.best else ""
            tokens = " + ".join(f"{trial.tokens[place]:.0f}" for place in trial.graph.calls)
            lines.append(
                f"| {mark}{trial.graph}{mark} | {utility:.3f} | {trial.score:.1%} | {tokens} "
                f"| {trial.cost:.0f} | {trial.latency:.0f} |"
            )
        return "\n".join(lines)


GraphAgent = Callable[[GraphArchive], "GraphDistribution | Awaitable[GraphDistribution | None] | None"]
"""A function or coroutine function that returns the next distribution; None leaves it to REINFORCE."""


async def search_graphs(
    start: GraphDistribution,
    measure: Callable[[CollaborationGraph], Awaitable[GraphTrial]],
    *,
    agent: GraphAgent | None = None,
    rounds: int = 10,
    graphs_per_round: int = 4,
    learning_rate: float = 1.0,
    utility: Callable[[GraphTrial], float] | None = None,
    prices: Mapping[str, float] | None = None,
    max_price: float | None = None,
    seed: int = 0,
) -> GraphArchive:
    """Searches for the graph of calls with the highest utility, by draws, their results, and updates.

    Wang et al., "Generalizing Test-time Compute-optimal Scaling as an Optimizable Graph", arXiv 2511.00086:
    nodes have roles and models, edges carry answers, and a distribution over such graphs is learnt. Each
    round draws graphs, measures the new ones concurrently, and updates the distribution.

    Args:
        start: its nodes, roles and models span the search.
        measure: runs a graph, such as `measure_graph` on a few questions.
        agent: updates the distribution in place of REINFORCE; it is also asked before the first round.
            `graph_agent` asks a language model.
        graphs_per_round: draws in a round, 2 or more: each one's baseline is the mean of the others.
        learning_rate: step of REINFORCE on the logits for each unit of utility.
        utility: of a trial, such as its score less a price for its latency; None: the score.
        prices: of a token, by model; default: 1 each.
        max_price: limit on a graph's price, the sum of the prices of its calls. Graphs over it are drawn
            again, never measured, so a trial costs at most this times the sampling's `max_tokens`.
        seed: of the draws.

    If an agent returns None, or a distribution that draws no graph within the limit, REINFORCE moves the
    previous one. The search ends early if such a graph is no longer drawn.

    Departures: written from the paper's abstract and summaries of it. An agent is an option and REINFORCE the
    default; prompts and the wording of the insights are ours; the number of places is the caller's, and
    those that no node reads take no part; an agent is shown what graphs cost in tokens, by model.

    Raises:
        ValueError: a number is out of range, no graph within the limit is drawn at the start, an agent's
            distribution is not over the same nodes, roles and models (TypeError: it is none).
    """
    at_least(1, rounds=rounds)
    at_least(2, graphs_per_round=graphs_per_round)
    number("learning_rate", learning_rate, low=0)
    any_integer("seed", seed)
    limit = math.inf if max_price is None else number("max_price", max_price, low=0)
    price = by_model("prices", prices, {name for table in start.models for name in table})
    archive, rng = GraphArchive(start, prices=prices, max_price=max_price), random.Random(seed)

    def within(distribution: GraphDistribution, rng: random.Random) -> Iterator[CollaborationGraph]:
        """Yields draws within the limit; ends where none of many is."""
        while True:
            drawn = (distribution.draw(rng) for _ in range(_MOST_DRAWS))
            graph = next((graph for graph in drawn if graph.price(price) <= limit), None)
            if graph is None:
                return
            yield graph

    async def updated() -> GraphDistribution:
        if agent is not None:
            proposed = await _asked(agent, archive, start)
            if proposed is not None and next(within(proposed, random.Random(seed)), None) is not None:
                return proposed
        if not archive.rounds:
            return start
        last = archive.rounds[-1]
        graphs = [trial.graph for trial in last.trials]
        return reinforce(last.distribution, graphs, last.utilities, learning_rate)

    archive.distribution = await updated()
    while len(archive.rounds) < rounds:
        graphs = list(islice(within(archive.distribution, rng), graphs_per_round))
        if len(graphs) < graphs_per_round:
            break
        known = {trial.graph: trial for trial in archive.trials}
        fresh = [graph for graph in dict.fromkeys(graphs) if graph not in known]
        measured = await gather(measure(graph) for graph in fresh)
        known |= dict(zip(fresh, measured, strict=True))
        trials = tuple(known[graph] for graph in graphs)
        worth = tuple(
            number("what utility returned", t.score if utility is None else utility(t)) for t in trials
        )
        archive.rounds.append(GraphRound(archive.distribution, trials, worth))
        archive.distribution = await updated()
    if not archive.rounds:
        raise ValueError(
            f"max_price: got {max_price}, and none of {_MOST_DRAWS} drawn graphs is within it; raise it, or "
            "lower the probabilities of reads in start"
        )
    return archive


async def _asked(
    agent: GraphAgent, archive: GraphArchive, start: GraphDistribution
) -> GraphDistribution | None:
    """Returns what an agent proposes; raises TypeError or ValueError if it does not fit the search."""
    made = agent(archive)
    proposed = await made if inspect.isawaitable(made) else made
    if proposed is None:
        return None
    instance("agent", proposed, GraphDistribution, "it returns one, or None to leave the update to REINFORCE")
    if _names(proposed) != _names(start):
        raise ValueError(
            f"agent: got a distribution over {_names(proposed)}, expected {_names(start)}: the same nodes, "
            "models and roles"
        )
    return proposed


def _names(distribution: GraphDistribution) -> Sequence[tuple[list[str], list[str]]]:
    return [
        (sorted(models), sorted(roles))
        for models, roles in zip(distribution.models, distribution.roles, strict=True)
    ]
