"""Measures what a collaboration graph solves, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tts_kernels.checks import number

from ...core.budget import Budget
from ...core.running import gather
from ..policy_fit import Question
from .graph import CollaborationGraph
from .running import GRAPH_ROLES, check_graph, run_calls

if TYPE_CHECKING:
    from ...core.interfaces import Branch, Decoder
    from ...core.params import SamplingParams
    from ...core.prompts import Prompt


@dataclass(frozen=True)
class GraphTrial:
    """The results of a graph, averaged over the questions.

    Attributes:
        score: of its answers, by the questions' verifiers.
        tokens: sampled, by the node's place; 0 at a place that takes no part.
        eflops: of all forwards (`Budget.cost_used`); 0 on other engines.
        cost: the tokens of each node at the price of its model, summed.
        latency: time of the tokens on the slowest chain of nodes that wait for each other.
        stopped: why the graph ended early on the first such question; None if on none.
    """

    graph: CollaborationGraph
    score: float
    tokens: tuple[float, ...]
    eflops: float
    cost: float
    latency: float
    stopped: str | None = None


async def measure_graph(
    decoders: Mapping[str, Decoder],
    graph: CollaborationGraph,
    questions: Sequence[Question],
    *,
    prices: Mapping[str, float] | None = None,
    token_times: Mapping[str, float] | None = None,
    roles: Mapping[str, str] | None = None,
    sampling: SamplingParams | None = None,
    make_prompt: Callable[[str], Prompt] = str,
) -> GraphTrial:
    """Answers each question by a graph, all questions concurrently.

    Args:
        decoders: by the names that nodes give models.
        questions: with verifiers.
        prices: of a sampled token, by model; default: 1 each.
        token_times: seconds that a token takes, by model, for `GraphTrial.latency`; default: 1 each. The time
            on the clock depends on what else is in the batch, this one does not.
        roles: as in `run_graph`; default: `GRAPH_ROLES`.
        sampling, make_prompt: as in `measure_settings`.

    Raises:
        ValueError: graph, names or questions do not fit each other; nothing was sampled.
    """
    roles = GRAPH_ROLES if roles is None else roles
    check_graph(graph, decoders, roles)
    price = by_model("prices", prices, graph.models)
    times = by_model("token_times", token_times, graph.models)
    if not questions or any(question.verify is None for question in questions):
        raise ValueError("questions: got none, or one without a verifier, expected answers to compare with")
    last = graph.calls[len(graph.nodes) - 1]

    async def answered(question: Question) -> tuple[float, dict[int, int], float, str | None]:
        budget, calls = Budget(), dict[int, "Branch"]()
        root = await decoders[last.model].root(make_prompt(question.prompt), sampling, budget)
        try:
            result = await run_calls(root, graph=graph, decoders=decoders, roles=roles, calls=calls)
        finally:
            root.release()
        tokens = {place: len(branch.tokens) - branch.prompt_length for place, branch in calls.items()}
        assert question.verify is not None  # checked before
        return question.verify(result.best.text), tokens, budget.cost_used, result.stopped

    found = await gather(answered(question) for question in questions)

    def latency(tokens: dict[int, int]) -> float:
        return graph.longest_path({p: count * times[graph.calls[p].model] for p, count in tokens.items()})

    tokens = tuple(_mean([row[1].get(place, 0) for row in found]) for place in range(len(graph.nodes)))
    return GraphTrial(
        graph,
        _mean([row[0] for row in found]),
        tokens,
        _mean([row[2] for row in found]),
        math.fsum(price[node.model] * tokens[place] for place, node in graph.calls.items()),
        _mean([latency(row[1]) for row in found]),
        next((row[3] for row in found if row[3] is not None), None),
    )


def by_model(name: str, given: Mapping[str, float] | None, models: set[str]) -> dict[str, float]:
    """Returns a number for each model, 1 unless given; raises ValueError if one is missing or below 0."""
    if given is None:
        return dict.fromkeys(models, 1.0)
    if missing := sorted(models - given.keys()):
        raise ValueError(f"{name}: got {sorted(given)}, expected one for the model {missing[0]!r}")
    return {model: number(f"{name}[{model!r}]", given[model], low=0) for model in sorted(models)}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
