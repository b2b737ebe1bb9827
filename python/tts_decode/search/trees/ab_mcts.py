"""AB-MCTS: at every answer, sample another one beside it or refine it further?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from ...core.checks import at_least, check_choice
from ...core.running import gather
from ...rewards.scorer import Scorer
from ...select import Beta, Gaussian, extract_answer, generate_or_continue
from ..answers import Extract, finish
from ..decisions import DecideBy
from ..result import SearchResult
from ..run import SearchRun
from ..strategy import strategy

REFINE = """{question}

An earlier answer:
{answer}

Its score, 1 being the best: {score:.2f}
{feedback}
Write a better answer to the question."""


@dataclass(eq=False)
class _Answer:
    """A node: an answer, or the root with none. scores: its own, then those of all answers below it."""

    text: str = ""
    node: int = 0
    parent: _Answer | None = None
    scores: list[float] = field(default_factory=list)
    children: list[_Answer] = field(default_factory=list)


@strategy("whole answers in a tree: Thompson sampling between new ones and refinements")
async def ab_mcts(
    run: SearchRun,
    *,
    max_samples: int = 16,
    scorer: Scorer,
    posterior: Literal["gaussian", "beta"] = "gaussian",
    parallel: int = 1,
    feedback: Callable[[str], str] | None = None,
    refine_prompt: str = REFINE,
    decide_by: DecideBy = "max",
    extract: Extract = extract_answer,
) -> SearchResult:
    """`max_samples` answers; the posteriors of scores decide whether each is sampled anew or refines one.

    Inoue et al., "Wider or Deeper? Scaling LLM Inference-Time Compute with Adaptive Branching Tree Search",
    arXiv 2503.04412, AB-MCTS-A (node aggregation), with the priors of its code (treequest). From the root
    down, a Thompson draw at each node says whether to generate a new child there (GEN) or to go on to one of
    its children (CONT, with a second draw between those). GEN at the root samples the question again; at an
    answer it asks for a better one, given the answer and its score.

    max_samples    answers in all.
    scorer         scores finished answers, in [0, 1] for "beta": the external feedback that the method needs.
    posterior      distribution of scores: "gaussian" (normal-inverse-chi-squared) or "beta".
    parallel       answers sampled side by side, each chosen before the others' scores are known. The authors
                   advise at most 5.
    feedback       text about an answer for the refinement prompt, such as test output; None gives the score
                   alone.
    refine_prompt  with the fields {question}, {answer}, {score} and {feedback}.
    decide_by, extract  as in `best_of_n`.

    Departures: one model and one kind of refinement leave no choice between generators; the variant with a
    mixed model (AB-MCTS-M) is left out.
    """
    at_least(1, max_samples=max_samples, parallel=parallel)
    run.decide_by(decide_by, extract)
    check_choice("posterior", posterior, ("gaussian", "beta"))
    prior = Gaussian() if posterior == "gaussian" else Beta()

    def choose(node: _Answer) -> _Answer:
        while True:
            child = generate_or_continue([child.scores for child in node.children], prior, run.rng)
            if child is None:
                return node
            node = node.children[child]

    async def generate(parent: _Answer) -> _Answer:
        if parent.parent is None:
            (branch,) = run.fork(run.root)
        else:
            said = "" if feedback is None else feedback(parent.text)
            prompt = refine_prompt.format(
                question=run.question, answer=parent.text, score=parent.scores[0], feedback=said
            )
            branch = await run.prompt(prompt, sources=[parent.node], question=run.question)
        candidate = await finish(run, branch, scorer)
        return _Answer(candidate.text, candidate.node, parent, list(candidate.scores[-1:]))

    root = _Answer()
    while max_samples > 0 and not run.over:
        parents = [choose(root) for _ in range(min(parallel, max_samples))]
        max_samples -= len(parents)
        for answer in await gather(generate(parent) for parent in parents):
            above = answer.parent
            assert above is not None
            above.children.append(answer)
            while above is not None:
                above.scores.append(answer.scores[0])
                above = above.parent
    return run.result()
