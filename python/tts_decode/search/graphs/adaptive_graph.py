"""Adaptive Graph of Thoughts: layers of subproblems, nested where one is complex."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tts_kernels.checks import number

from ...core.checks import at_least
from ...core.running import gather
from ...select import ancestors
from ..answers import finish
from ..result import Candidate, SearchResult
from ..run import SearchRun
from ..strategy import strategy
from .parsing import listed, with_needs
from .prompting import answer_to, reply_to

FIRST = """{question}

Which subproblems would help to solve this? List at most {n} that can be worked on at the same time:
1. subproblem
2. subproblem"""

NEXT = """{question}

Worked out so far:
{graph}

If this is enough to answer, reply DONE. Else list at most {n} further subproblems, with the numbers of what \
each rests on:
1. subproblem (needs: 1, 2)"""

COMPLEX = """{question}

Known:
{known}

Subproblem: {task}

Is this subproblem so complex that it should be split up further?"""

EVALUATE = """{question}

Known:
{known}

Solve this subproblem only: {task}"""

FINAL = """{question}

Worked out:
{graph}

Use this to answer the question at the top."""


@dataclass(frozen=True)
class Thought:
    """A node of the graph: a subproblem, the thoughts of its graph that it depends on, and its solution."""

    task: str
    needs: tuple[int, ...]
    answer: str
    node: int  # the answer's, in the search's tree


@strategy("a graph of subproblems, layer by layer, nested where one is complex")
async def adaptive_graph(
    run: SearchRun, *, max_parts: int = 3, max_layers: int = 2, max_depth: int = 1, threshold: float = 0.5
) -> SearchResult:
    """Solves subproblems layer by layer, then answers from the graph of their solutions.

    Pandey et al., "Adaptive Graph of Thoughts: Test-Time Adaptive Reasoning Unifying Chain, Tree, and Graph
    Structures", arXiv 2502.05078, section 3 (defaults of its code). The subproblems of a layer are solved
    concurrently, each given the solutions it depends on in earlier layers. A complex subproblem gets its own
    graph.

    Args:
        max_parts: maximum number of subproblems per layer.
        max_layers: layers of a graph.
        max_depth: levels of graphs within graphs; 0 nests none.
        threshold: a subproblem is complex if the model's probability of Yes to that question exceeds this.

    If the first layer has fewer than two readable subproblems, the question is atomic: nothing is built and
    the direct answer stands. A later layer without subproblems ends its graph, as the reply DONE does. A
    subproblem that names no others depends on all earlier ones. The outer graph's prompts begin with the
    question and share its KV with the root.

    Departures: complexity is the probability of Yes, not a sampled verdict, and needs an engine that scores
    text; a direct answer is sampled alongside the first layer, so that a search cut short has one; after the
    last layer the model is not asked for another.
    """
    at_least(1, max_parts=max_parts, max_layers=max_layers)
    at_least(0, max_depth=max_depth)
    number("threshold", threshold, low=0, high=1)

    async def explore(question: str, depth: int) -> list[Thought]:
        thoughts: list[Thought] = []
        for layer in range(max_layers):
            template = NEXT if layer else FIRST
            prompt = template.format(
                question=question, n=max_parts, graph=as_text(thoughts, range(len(thoughts)))
            )
            reply = await reply_to(run, prompt, [thought.node for thought in thoughts])
            tasks, wanted = with_needs(listed(reply.text, max_parts))
            if run.over or len(tasks) < (1 if layer else 2):
                break
            earlier = range(len(thoughts))
            needs = [tuple(i for i in named if i in earlier) or tuple(earlier) for named in wanted]
            thoughts += await gather(
                solve(question, task, need, thoughts, reply.node, depth)
                for task, need in zip(tasks, needs, strict=True)
            )
        return thoughts

    async def solve(
        question: str, task: str, needs: tuple[int, ...], thoughts: Sequence[Thought], source: int, depth: int
    ) -> Thought:
        rests_on = ancestors([thought.needs for thought in thoughts], needs)
        sources = [source, *(thoughts[i].node for i in rests_on)]
        fields = {"question": question, "known": as_text(thoughts, rests_on), "task": task}
        if depth < max_depth and await run.p_yes(COMPLEX.format(**fields), sources=sources) > threshold:
            inner = f"{task}\n\nKnown:\n{fields['known']}"
            if nested := await explore(inner, depth + 1):
                prompt = FINAL.format(question=inner, graph=as_text(nested, range(len(nested))))
                reply = await reply_to(run, prompt, [thought.node for thought in nested])
                return Thought(task, needs, reply.text, reply.node)
        reply = await reply_to(run, EVALUATE.format(**fields), sources)
        return Thought(task, needs, reply.text, reply.node)

    both: list[Any] = await gather(explore(run.question, 0), finish(run, run.fork(run.root)[0]))
    thoughts, direct = both
    best: Candidate = direct
    if thoughts:
        prompt = FINAL.format(question=run.question, graph=as_text(thoughts, range(len(thoughts))))
        final = await answer_to(run, prompt, [thought.node for thought in thoughts])
        best = final if final.complete else direct
    return await run.result(best)


def as_text(thoughts: Sequence[Thought], which: Sequence[int]) -> str:
    """Returns these thoughts under their numbers, "nothing" if there are none."""
    return "\n".join(f"{i + 1}. {thoughts[i].task} -> {thoughts[i].answer}" for i in which) or "nothing"
