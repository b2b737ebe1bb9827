"""An agent for `search_graphs`: a language model that reads results and revises probabilities."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tts_kernels.checks import number

from .agent_reinforce import GraphAgent, GraphArchive
from .distribution import GraphDistribution

if TYPE_CHECKING:
    from ...core.interfaces import Decoder
    from ...core.params import SamplingParams

GRAPHS = """Several calls of language models answer a question together, as a graph. Each node is a call of \
a model. A node may read the answers of earlier nodes: as an assistant it improves them, as a fuser it \
settles on one. A node that reads none answers the question itself. The last node's answer counts, and nodes \
that nobody reads are left out.

Graphs are drawn from these probabilities, a line for each node with its models, its roles and what it reads:
{distribution}

What is known of such graphs:
- It depends on the task whether many calls of a small model or few of a large one serve better.
- More nodes side by side, or more in a row, help only up to a point.
- Width and depth share one budget, so the best width depends on the depth.

Tried so far, with the utility that is to be raised:
{trials}
{limit}
Say briefly what these results suggest. Then revise probabilities, one a line, each as in these examples:
reads {last} 0: 0.8
model {last} {model}: 0.7
role {last} {role}: 0.6"""

_LINE = re.compile(
    r"^\W*(reads|model|role)\s+(\d{1,6})\s+(.+?)\s*:\s*([01]?\.\d+|[01])\b", re.IGNORECASE | re.MULTILINE
)


def graph_agent(
    decoder: Decoder,
    *,
    least: float = 0.05,
    sampling: SamplingParams | None = None,
    agent_prompt: str = GRAPHS,
) -> GraphAgent:
    """Returns an agent that has a language model revise probabilities; unreadable lines are ignored.

    A reply without a readable line leaves the update to REINFORCE. Probabilities of 0 and 1 stay.

    Args:
        least: lowest probability that a reply can set, so that all parts may be drawn again; the highest of
            an input is 1 - least.
        sampling: of its reply; default: the decoder's.
        agent_prompt: with the fields {distribution}, {trials}, {limit}, {last}, {model} and {role}.
    """
    number("least", least, low=0, below=0.5)

    async def propose(archive: GraphArchive) -> GraphDistribution | None:
        text = agent_prompt.format(**_fields(archive))
        prompt = [{"role": "user", "content": text}] if decoder.knows_chat else text
        root = await decoder.root(prompt, sampling)
        try:
            while not root.finished:
                await root.step()
            return revised(archive.distribution, root.text, least)
        finally:
            root.release()

    return propose


def revised(distribution: GraphDistribution, text: str, least: float) -> GraphDistribution | None:
    """Returns the distribution with the probabilities that a reply names; None if it names none that fits."""
    reads: defaultdict[int, dict[int, float]] = defaultdict(dict)
    named: dict[str, defaultdict[int, dict[str, float]]] = {
        "model": defaultdict(dict),
        "role": defaultdict(dict),
    }
    tables = {"model": distribution.models, "role": distribution.roles}
    for kind, place, what, value in _LINE.findall(text):
        kind, j, p = kind.lower(), int(place), float(value)
        if j >= len(distribution.reads) or p > 1:
            continue
        if kind == "reads":
            i = int(what) if what.isdecimal() and len(what) < 7 else j
            if i < j and _open(distribution.reads[j][i]):
                reads[j][i] = min(max(p, least), 1 - least)
        elif _open(tables[kind][j].get(what, 0)):
            named[kind][j][what] = max(p, least)
    if not reads and not named["model"] and not named["role"]:
        return None
    return GraphDistribution(
        tuple(
            tuple(reads[j].get(i, p) for i, p in enumerate(row)) for j, row in enumerate(distribution.reads)
        ),
        tuple(_shared(table, named["role"][j], least) for j, table in enumerate(distribution.roles)),
        tuple(_shared(table, named["model"][j], least) for j, table in enumerate(distribution.models)),
    )


def _open(p: float) -> bool:
    return 0 < p < 1


def _shared(table: Mapping[str, float], named: Mapping[str, float], least: float) -> Mapping[str, float]:
    """Returns the named probabilities; the other names share what is left as they did before."""
    if not named:
        return table
    others = sum(p for name, p in table.items() if name not in named)
    share = max(1 - sum(named.values()), least) / others if others else 0.0
    weights = {name: named.get(name, p * share) for name, p in table.items()}
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def _fields(archive: GraphArchive) -> dict[str, str]:
    trials = [
        f"{trial.graph}: utility {utility:.3f}, {trial.score:.0%} solved, cost {trial.cost:.0f}, "
        f"latency {trial.latency:.0f}"
        for utility, trial in archive.measured.values()
    ]
    limit = ""
    if archive.max_price is not None:
        each = "each call counts 1"
        if archive.prices is not None:
            each = "a call counts " + ", ".join(f"{p:g} of {model}" for model, p in archive.prices.items())
        limit = f"The calls of a graph may cost {archive.max_price:g} in all; {each}.\n"
    last = len(archive.distribution.reads) - 1
    return {
        "distribution": str(archive.distribution),
        "trials": "\n".join(trials) or "nothing",
        "limit": limit,
        "last": str(last),
        "model": next(iter(archive.distribution.models[last])),
        "role": next(iter(archive.distribution.roles[last])),
    }
