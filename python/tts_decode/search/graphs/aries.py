"""ARIES: a policy picks the next action on a graph of thoughts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ...core.checks import at_least
from ...select import vote
from ..answers import finish, spoken
from ..result import Candidate, SearchResult
from ..run import SearchRun
from ..strategy import strategy
from .parsing import listed
from .prompting import Reply, answer_to, reply_to

if TYPE_CHECKING:
    from ...core.interfaces import Decoder

POLICY = """{question}

This problem is worked on as a graph of thoughts:
{graph}

Actions taken: {history}

Possible actions, K being a number in the graph:
decompose K - split unsolved K into parts
solve K - solve unsolved K directly
refine K - improve the solution of K
reduce K - drop K and its parts
aggregate K - make a solution of K from those of its parts
stop - the solution of 1 is final

Reply with the best next action alone, such as: solve 2"""

DECOMPOSE = """{question}

Split it into parts that can be solved on their own. List at most {n}:
1. part
2. part"""

SOLVE = """{question}

Solve this part of it only: {part}"""

REFINE = """{question}

A solution:
{answer}

Find what is wrong or weak in it and write an improved solution in full."""

AGGREGATE = """{question}

Solutions of its parts:
{parts}

Combine them into one solution in full."""

_ACTION = re.compile(
    r"\b(stop)\b|\b(decompose|solve|refine|reduce|aggregate)\b[^\d\n]{0,3}(\d+)", re.IGNORECASE
)


@dataclass
class Problem:
    """A node of the thought graph. The first is the whole problem; others are parts of their parent."""

    text: str
    parent: int = -1
    parts: list[int] = field(default_factory=list)  # without dropped ones
    solution: Reply | None = None


Graph = dict[int, Problem]  # by number, without dropped ones


@strategy("a policy prompt picks transformations of a thought graph, one after another")
async def aries(
    run: SearchRun,
    *,
    num_votes: int = 5,
    policy_decoder: Decoder | None = None,
    max_actions: int = 12,
    max_parts: int = 4,
    max_tokens_policy: int = 256,
) -> SearchResult:
    """Transforms a graph of problems and solutions by actions that a policy chooses.

    Gimenes et al., "ARIES: Autonomous Reasoning with LLMs on Interactive Thought Graph Environments", arXiv
    2502.21208: transformations as the actions of a Markov decision process, an ensemble of policies. The
    policy sees the graph and the actions so far, and chooses the next action: decompose, solve, refine,
    reduce, aggregate or stop; `num_votes` samples of it vote. The root's model carries out the action.

    Args:
        num_votes: samples of the policy for each action; the most frequent one decides.
        policy_decoder: model of the policy; None: the root's own.
        max_actions: maximum number of actions.
        max_parts: maximum number of parts of a decomposition, 2 or more.
        max_tokens_policy: maximum number of tokens of a policy's reply.

    Replies that name no action, or one that the graph does not allow, abstain. If all do, a static schedule
    decides: aggregate a problem whose parts are all solved, else solve the first unsolved leaf, else stop. A
    decomposition with fewer than two readable parts changes nothing. If the whole problem is unsolved after
    the last action, its parts are aggregated, or it is solved directly. Every solution of the whole is a
    candidate, the last complete one the best.

    The policy's prompts begin with the problem and share its KV with the root.

    Departures: one prompt for all tasks instead of the paper's task-specific ones with examples; every action
    names one node, including refinement and reduction; defaults are ours.
    """
    at_least(1, num_votes=num_votes, max_actions=max_actions, max_tokens_policy=max_tokens_policy)
    at_least(2, max_parts=max_parts)
    graph: Graph = {1: Problem(run.question)}
    history: list[str] = []
    solved: list[Candidate] = []  # solutions of the whole problem, in order

    async def write(k: int, prompt: str, sources: Sequence[int]) -> None:
        """Writes the solution of problem k."""
        if k == 1:
            solved.append(await answer_to(run, prompt, sources))
            graph[k].solution = Reply(spoken(solved[-1].text), solved[-1].node)
        else:
            graph[k].solution = await reply_to(run, prompt, sources)

    async def take(name: str, k: int) -> None:
        problem = graph[k]
        if name == "decompose":
            reply = await reply_to(run, DECOMPOSE.format(question=problem.text, n=max_parts))
            parts = listed(reply.text, max_parts)
            for text in parts if len(parts) > 1 else ():
                number = max(graph) + 1
                graph[number] = Problem(text, k)
                problem.parts.append(number)
        elif name == "solve" and k == 1:
            solved.append(await finish(run, run.fork(run.root)[0]))
            problem.solution = Reply(spoken(solved[-1].text), solved[-1].node)
        elif name == "solve":
            await write(k, SOLVE.format(question=run.question, part=problem.text), [])
        elif name == "refine" and problem.solution is not None:
            prompt = REFINE.format(question=problem.text, answer=problem.solution.text)
            await write(k, prompt, [problem.solution.node])
        elif name == "aggregate":
            parts_solved = [(graph[i].text, graph[i].solution) for i in problem.parts]
            known = [(text, solution) for text, solution in parts_solved if solution is not None]
            lines = "\n".join(f"- {text}: {solution.text}" for text, solution in known)
            prompt = AGGREGATE.format(question=problem.text, parts=lines)
            await write(k, prompt, [solution.node for _, solution in known])
        elif name == "reduce":
            drop(graph, k)

    for _ in range(max_actions):
        allowed = allowed_actions(graph)
        prompt = POLICY.format(
            question=run.question, graph=as_text(graph), history=", ".join(history) or "none"
        )
        replies = await run.ask(prompt, num_votes, decoder=policy_decoder, max_tokens=max_tokens_policy)
        votes = vote([read_action(spoken(reply), allowed) for reply in replies])
        action = next(iter(votes), None) or scheduled_action(graph)
        if run.over or action == "stop":
            break
        history.append(action)
        name, _, k = action.partition(" ")
        await take(name, int(k))
    if graph[1].solution is None:
        await take("aggregate" if "aggregate 1" in allowed_actions(graph) else "solve", 1)
    return await run.result(next((candidate for candidate in reversed(solved) if candidate.complete), None))


def allowed_actions(graph: Graph) -> list[str]:
    """Returns the actions that are possible on the graph."""
    allowed = ["stop"] if graph[1].solution is not None else []
    for k, problem in graph.items():
        if problem.solution is None:
            allowed += [f"solve {k}"] + ([] if problem.parts else [f"decompose {k}"])
        else:
            allowed.append(f"refine {k}")
        if any(graph[i].solution is not None for i in problem.parts):
            allowed.append(f"aggregate {k}")
        if k != 1:
            allowed.append(f"reduce {k}")
    return allowed


def scheduled_action(graph: Graph) -> str:
    """Returns the next action of a schedule that depends only on what is solved."""
    unsolved = [k for k, problem in graph.items() if problem.solution is None]
    for k in reversed(unsolved):
        parts = graph[k].parts
        if parts and all(graph[i].solution is not None for i in parts):
            return f"aggregate {k}"
    return next((f"solve {k}" for k in unsolved if not graph[k].parts), "stop")


def read_action(reply: str, allowed: Sequence[str]) -> str | None:
    """Returns the first action that the reply names; None if it names none, or one that is not allowed."""
    found = _ACTION.search(reply)
    if found is None:
        return None
    action = "stop" if found[1] else f"{found[2].lower()} {int(found[3])}"
    return action if action in allowed else None


def drop(graph: Graph, k: int) -> None:
    """Removes problem k from the graph, with all of its parts."""
    problem = graph.pop(k)
    for i in problem.parts:
        drop(graph, i)
    if problem.parent in graph:
        graph[problem.parent].parts.remove(k)


def as_text(graph: Graph) -> str:
    """Returns one line per problem: number, what it is part of, text, solution."""
    lines = []
    for k, problem in graph.items():
        part = f" (part of {problem.parent})" if k != 1 else ""
        solution = "unsolved" if problem.solution is None else f"solved: {problem.solution.text}"
        lines.append(f"{k}.{part} {problem.text} -> {solution}")
    return "\n".join(lines)
