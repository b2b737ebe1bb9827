"""R-MCTS: what surprised a tree search becomes a reflection that later searches read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from tts_kernels.checks import number

from ...core.checks import at_least
from ...errors import PromptTooLongError
from ...rewards.scorer import Scorer
from ...select import extract_answer, lexical_similarity, rebase_weights
from ..answers import Extract
from ..decisions import DecideBy
from ..result import SearchResult
from ..run import SearchRun
from ..strategy import strategy
from .tree_node import TreeNode, add_children, conclude, grow, leaves_of, most_visited, release

if TYPE_CHECKING:
    from ...core.interfaces import Branch

EXPECT = """{question}

Work so far:
{state}

Next step:
{step}

In one or two sentences: what does this step lead to?"""
REFLECT = """{question}

Work so far:
{state}

Step that was taken:
{step}

What it was expected to lead to:
{expected}

What came of it:
{actual}

Compare what was expected with what came. In one or two sentences: what is to be done otherwise in such a \
place?"""
REMIND = """{question}

What was learned from earlier attempts at this or a similar task:
{reflections}"""
SUCCESS, FAILURE = "The attempt ended well.", "The attempt did not end well."
MANY, LEAST_ALIKE = 2, 0.25  # number of reflections retrieved, and minimum similarity of their questions
ESTEEMED = 0.7  # mean value of a path's steps above which its attempt counts as a success


class Reflection(NamedTuple):
    """question, step: where it was learned. text: what was learned."""

    question: str
    step: str
    text: str


@dataclass
class ReflectionMemory:
    """Reflections of searches, for later ones; pass one object to all of them."""

    reflections: list[Reflection] = field(default_factory=list)

    def retrieve(self, question: str) -> list[Reflection]:
        """Returns the two with the most similar questions (ties: the earlier), if similar enough.

        Similarity is of words.
        """
        likeness = [lexical_similarity(question, r.question) for r in self.reflections]
        order = sorted(range(len(likeness)), key=lambda i: -likeness[i])[:MANY]
        return [self.reflections[i] for i in order if likeness[i] >= LEAST_ALIKE]


@strategy("tree search whose most surprising step becomes a reflection for the next one")
async def r_mcts(
    run: SearchRun,
    *,
    num_simulations: int = 16,
    scorer: Scorer,
    num_children: int = 4,
    max_rounds: int = 1,
    max_steps: int = 40,
    exploration: float = 1.0,
    threshold: float = 0.1,
    memory: ReflectionMemory | None = None,
    expect_prompt: str = EXPECT,
    reflect_prompt: str = REFLECT,
    remind_prompt: str = REMIND,
    decide_by: DecideBy = "max",
    agg_strategy: str = "last",
    extract: Extract = extract_answer,
) -> SearchResult:
    """Searches, reflects on the most surprising step, and searches again; lacks the debate of models.

    Yu et al., "ExACT: Teaching AI Agents to Explore with Reflective-MCTS and Exploratory Learning", arXiv
    2410.02052 (first called "Improving Autonomous AI Agents with Reflective Tree Search and Self-Learning"),
    section 3, contrastive reflection (its code: microsoft/ExACT).

    Args:
        num_simulations: simulations of each search.
        scorer: values of partial answers, in [0, 1].
        num_children: steps sampled when a leaf is expanded; equal steps become one child.
        max_rounds: searches after the first one; 0: one search, for a `memory` that is passed from question
            to question as in the paper.
        max_steps: steps on a path.
        exploration: weight of a step's bonus, prior * sqrt(visits of its parent) / (1 + its own).
        threshold: lowest surprise of a step that is reflected on.
        memory: reflections of earlier searches; this search adds its own. None: only those of this search.
        expect_prompt: with the fields {question}, {state} and {step}.
        reflect_prompt: with the fields {question}, {state}, {step}, {expected} and {actual}.
        remind_prompt: with the fields {question} and {reflections}; it replaces the question if the memory
            holds anything similar.
        decide_by, agg_strategy, extract: as in `beam_search`, over the answers of all searches.

    The surprise of a step on the most visited path is |V - Q|: V is the scorer's value of its result, Q the
    mean value returned by the simulations through it. V of the last step is 1 if the path's mean Q is above
    0.7, else 0. The model says what it expects of the most surprising step and then, given what actually
    followed, what can be learned.

    Departures: the values are the scorer's, not those of a debate of several models, and reflections on
    values are left out; a prior is the probability of the step's words; similarity is of words, not of
    embeddings; all new children are scored, and a simulation returns the score of the one it continues to.
    Each search of a question is one round; the paper's agent sees a task once. Wording.
    """
    at_least(1, num_simulations=num_simulations, num_children=num_children, max_steps=max_steps)
    at_least(0, max_rounds=max_rounds)
    number("exploration", exploration, low=0)
    number("threshold", threshold, low=0)
    run.aggregate_by(agg_strategy)
    run.decide_by(decide_by, extract)
    kept = memory is not None
    memory = memory if memory is not None else ReflectionMemory()

    def select(node: TreeNode) -> int:
        logprobs = [child.logprob for child in node.children]
        known = all(map(math.isfinite, logprobs))
        priors = rebase_weights(logprobs if known else [0.0] * len(logprobs), 1.0)
        visits = [child.visits + child.pending for child in node.children]
        scale = exploration * math.sqrt(max(sum(visits), 1))
        bounds = [
            child.value + scale * prior / (1 + count)
            for child, prior, count in zip(node.children, priors, visits, strict=True)
        ]
        return max(range(len(bounds)), key=bounds.__getitem__)

    async def expand(nodes: Sequence[TreeNode]) -> None:
        families = [(node, run.fork(node.branch, num_children)) for node in nodes if node.branch is not None]
        await run.step([branch for _, branches in families for branch in branches])
        await add_children(run, scorer, families, max_steps)
        for child in (child for node, _ in families for child in node.children):
            at = child.candidate.node if child.candidate is not None else run.node(_open(child))
            texts[child] = run.tree[at].text

    async def values_of(leaves: Sequence[TreeNode]) -> list[float]:
        return [leaf.score for leaf in leaves]

    texts: dict[TreeNode, str] = {}

    async def planted() -> TreeNode:
        learned = memory.retrieve(run.question)
        if not learned:
            return TreeNode(run.fork(run.root)[0])
        said = "\n".join(f"- {reflection.text}" for reflection in learned)
        prompt = remind_prompt.format(question=run.question, reflections=said)
        return TreeNode(await run.prompt(prompt, question=run.question))

    async def reflect(root: TreeNode) -> None:
        path = most_visited(root).up()[-2::-1]  # without the root
        if not path:
            return
        succeeded = math.fsum(node.value for node in path) / len(path) > ESTEEMED
        expected_values = [*(node.score for node in path[:-1]), float(succeeded)]
        errors = [abs(v - node.value) for v, node in zip(expected_values, path, strict=True)]
        found = errors.index(max(errors))
        if errors[found] < threshold:
            return
        steps = [texts[node] for node in path]
        outcome = SUCCESS if succeeded else FAILURE
        fields = {"question": run.question, "state": "".join(steps[:found]), "step": steps[found]}
        with suppress(PromptTooLongError):  # then nothing is learned
            (expected,) = await run.ask(expect_prompt.format(**fields))
            actual = steps[found + 1] if found + 1 < len(steps) else outcome
            said = reflect_prompt.format(expected=expected.strip(), actual=actual, **fields)
            (text,) = await run.ask(said)
            if text.strip():
                memory.reflections.append(Reflection(run.question, steps[found], text.strip()))

    root = await planted()
    for searched in range(max_rounds + 1):
        await grow(run, root, num_simulations, select, expand, simulate=values_of)
        if run.over:
            break
        last = searched == max_rounds
        if kept or not last:
            await reflect(root)
        if run.over or last:
            break
        release(run, leaves_of(root))
        root = await planted()
    return await conclude(run, root, scorer)


def _open(node: TreeNode) -> Branch:
    assert node.branch is not None  # a new child that is not terminal
    return node.branch
