"""AB-MCTS: at every answer, decides between sampling another one beside it and refining it further."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from ...core.checks import at_least, check_choice
from ...core.running import gather
from ...rewards.scorer import Scorer
from ...select import (
    Beta,
    Gaussian,
    MixedModel,
    extract_answer,
    generate_or_continue,
    mixed_choice,
    mixed_generator,
    mixed_stack,
    stacked_choice,
    thompson_generator,
    ucb_generator,
)
from ..answers import Extract, finish, root_on
from ..decisions import DecideBy
from ..outside import TextFunction, text_for
from ..result import SearchResult
from ..run import SearchRun
from ..strategy import strategy

if TYPE_CHECKING:
    from ...core.interfaces import Branch, Decoder

REFINE = """{question}

An earlier answer:
{answer}

Its score, 1 being the best: {score:.2f}
{feedback}
Write a better answer to the question."""


@dataclass(eq=False)
class _Answer:
    """A node: an answer, or the root with none.

    Attributes:
        generator: which model made it.
        scores: its own, then those of all answers below it.
    """

    text: str = ""
    node: int = 0
    generator: int = 0
    parent: _Answer | None = None
    scores: list[float] = field(default_factory=list)
    children: list[_Answer] = field(default_factory=list)


@strategy("whole answers in a tree: Thompson sampling between new ones and refinements, by one model or more")
async def ab_mcts(
    run: SearchRun,
    *,
    max_samples: int = 16,
    scorer: Scorer,
    decoders: Sequence[Decoder] = (),
    posterior: Literal["gaussian", "beta", "mixed"] = "gaussian",
    generator: Literal["thompson", "ucb", "stack"] = "thompson",
    parallel: int = 1,
    feedback: TextFunction | None = None,
    refine_prompt: str = REFINE,
    decide_by: DecideBy = "max",
    extract: Extract = extract_answer,
) -> SearchResult:
    """Decides by the posteriors of scores whether each answer is sampled anew or refines another.

    Inoue et al., "Wider or Deeper? Scaling LLM Inference-Time Compute with Adaptive Branching Tree Search",
    arXiv 2503.04412, with the priors and the choice of models of its code (treequest). From the root down,
    each node decides between a new child (GEN) and continuing to one of its children (CONT). GEN at the root
    samples the question; at an answer it asks for a better one, given the answer and its score.

    Args:
        max_samples: total number of answers.
        scorer: scores finished answers, in [0, 1] except for "gaussian": the external feedback that the
            method needs.
        decoders: further models that may make an answer, at any node, besides the root's own.
        posterior: "gaussian" (normal-inverse-chi-squared) and "beta" are AB-MCTS-A (node aggregation): a
            Thompson draw between GEN and CONT, then one between the children. "mixed" is AB-MCTS-M: one draw
            of the next score of every child and of a new one, from a mixed model with a group for each child
            (`select.MixedModel`).
        generator: which of several models makes a new answer. "thompson": the best draw of their scores in
            the whole tree; "ucb": the best bound on them; "stack": every node decides first between models
            and then among that model's children there, with "mixed" among all at once.
        parallel: answers sampled concurrently, each chosen before the others' scores are known. The authors
            advise at most 5.
        feedback: text about an answer for the refinement prompt, such as test output. An async function is
            awaited; another one runs in a thread. None: the score alone.
        refine_prompt: with the fields {question}, {answer}, {score} and {feedback}.
        decide_by, extract: as in `best_of_n`.

    Departures. One kind of refinement, so that choosing a generator means choosing a model. "mixed" draws
    from the exact posterior over a grid of the two deviations; the code runs NUTS.
    """
    at_least(1, max_samples=max_samples, parallel=parallel)
    run.decide_by(decide_by, extract)
    check_choice("posterior", posterior, ("gaussian", "beta", "mixed"))
    check_choice("generator", generator, ("thompson", "ucb", "stack"))
    count, mixed = 1 + len(decoders), MixedModel()
    prior = Beta() if posterior == "beta" else Gaussian()
    roots: list[Branch] = [run.root, *[await root_on(run, decoder) for decoder in decoders]]
    seen: list[list[float]] = [[] for _ in range(count)]  # scores by model

    def new_generator() -> int:
        if generator == "ucb":
            return ucb_generator(seen)
        if posterior == "mixed":
            return mixed_generator(seen, run.rng, mixed)
        return thompson_generator(seen, prior, run.rng)

    def decide(node: _Answer) -> tuple[int | None, int]:
        """Returns the child to continue to, or None; then the model of a new one."""
        scores = [child.scores for child in node.children]
        makers = [child.generator for child in node.children]
        if generator == "stack":
            if posterior == "mixed":
                return mixed_stack(scores, makers, count, run.rng, mixed)
            return stacked_choice(scores, makers, count, prior, run.rng)
        if posterior == "mixed":
            child = mixed_choice(scores, run.rng, mixed)
        else:
            child = generate_or_continue(scores, prior, run.rng)
        return child, new_generator() if child is None else 0

    def choose() -> tuple[_Answer, int]:
        """Returns the node that gets the next answer, and the model that makes it."""
        node = root
        while True:
            child, maker = decide(node)
            if child is None:
                return node, maker
            node = node.children[child]

    async def generate(parent: _Answer, maker: int) -> _Answer:
        if parent.parent is None:
            (branch,) = run.fork(roots[maker])
        else:
            said = "" if feedback is None else await text_for(run, "feedback", feedback, parent.text)
            prompt = refine_prompt.format(
                question=run.question, answer=parent.text, score=parent.scores[0], feedback=said
            )
            decoder = decoders[maker - 1] if maker else None
            sources = [parent.node]
            branch = await run.prompt(prompt, sources=sources, decoder=decoder, question=run.question)
        candidate = await finish(run, branch, scorer)
        return _Answer(candidate.text, candidate.node, maker, parent, list(candidate.scores[-1:]))

    root = _Answer()
    while max_samples > 0 and not run.over:
        places = [choose() for _ in range(min(parallel, max_samples))]
        max_samples -= len(places)
        for answer in await gather(generate(parent, maker) for parent, maker in places):
            seen[answer.generator].append(answer.scores[0])
            above = answer.parent
            assert above is not None
            above.children.append(answer)
            while above is not None:
                above.scores.append(answer.scores[0])
                above = above.parent
    return await run.result()
