"""Answers a question by a collaboration graph."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from string import Formatter
from typing import TYPE_CHECKING

from ...core.running import gather
from ..answers import finish, root_on, spoken
from ..graphs.parsing import numbered
from ..result import Candidate, SearchResult
from ..run import SearchRun
from ..strategy import Strategy
from .graph import CollaborationGraph, GraphNode

if TYPE_CHECKING:
    from ...core.interfaces import Branch, Decoder

ASSISTANT = """{question}

Answers so far:

{answers}

Find what is wrong or missing in them, and give an improved answer of your own."""

FUSER = """{question}

Several answers were proposed:

{answers}

Decide what each one contributes, and settle on a single final answer."""

GRAPH_ROLES: Mapping[str, str] = {"assistant": ASSISTANT, "fuser": FUSER}
"""What nodes do with the answers that they read: prompts with the fields {question} and {answers}."""


async def run_graph(
    root: Branch | SearchRun,
    *,
    graph: CollaborationGraph,
    decoders: Mapping[str, Decoder],
    roles: Mapping[str, str] = GRAPH_ROLES,
) -> SearchResult:
    """Answers a prompt by the calls of a graph; each begins as soon as the answers that it reads are there.

    Every node's answer is a candidate, the last node's the best. A search that is cut short takes the best of
    what it has, as strategies do.

    Args:
        root: of any model, as for a strategy; nodes of its model fork it.
        decoders: by the names that nodes give models.
        roles: prompts by name, which begin with the question if its KV is to be shared.

    Raises:
        ValueError: a model or a role of the graph is unknown, or a prompt has other fields; nothing was
            sampled.
    """
    check_graph(graph, decoders, roles)
    return await run_calls(root, graph=graph, decoders=decoders, roles=roles, calls={})


def check_graph(graph: CollaborationGraph, decoders: Mapping[str, Decoder], roles: Mapping[str, str]) -> None:
    """Raises ValueError unless each model has a decoder and each role a prompt."""
    for node in graph.calls.values():
        if node.model not in decoders:
            raise ValueError(f"decoders: got {sorted(decoders)}, expected one for the model {node.model!r}")
        if node.inputs and node.role not in roles:
            raise ValueError(f"roles: got {sorted(roles)}, expected a prompt for the role {node.role!r}")
    for role, prompt in roles.items():
        for _, field, _, _ in Formatter().parse(prompt):
            if field not in (None, "question", "answers"):
                raise ValueError(
                    f"roles[{role!r}]: got the field {{{field}}}, expected {{question}}, {{answers}}"
                )


async def collaboration(
    run: SearchRun,
    *,
    graph: CollaborationGraph,
    decoders: Mapping[str, Decoder],
    roles: Mapping[str, str],
    calls: dict[int, Branch],
) -> SearchResult:
    """Runs the calls of a graph that was checked; `calls` receives each node's branch by its place."""
    loop = asyncio.get_running_loop()
    answers: dict[int, asyncio.Future[Candidate | None]] = {p: loop.create_future() for p in graph.calls}
    starts = {node.model for node in graph.calls.values() if not node.inputs}
    others = [model for model in sorted(starts) if decoders[model] is not run.root.decoder]
    opened = await gather(root_on(run, decoders[model]) for model in others)
    roots = dict(zip(others, opened, strict=True))  # each model computes the question once

    async def begun(node: GraphNode, read: list[Candidate]) -> Branch:
        if not read:
            return run.fork(roots.get(node.model, run.root))[0]
        texts = numbered([spoken(answer.text) for answer in read])
        prompt = roles[node.role].format(question=run.question, answers=texts)
        sources = [answer.node for answer in read]
        return await run.prompt(prompt, sources=sources, decoder=decoders[node.model])

    async def call(place: int, node: GraphNode) -> None:
        read = [answer for i in node.inputs if (answer := await answers[i]) is not None]
        if run.over:  # so it is for all nodes that would read this one
            answers[place].set_result(None)
            return
        calls[place] = await begun(node, read)
        answers[place].set_result(await finish(run, calls[place]))

    await gather(call(place, node) for place, node in graph.calls.items())
    best = answers[len(graph.nodes) - 1].result()
    return await run.result(best if best is not None and best.complete else None)


run_calls = Strategy(collaboration, "the calls of a collaboration graph")
