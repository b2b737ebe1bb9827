"""Iterative agent decoding: the model sees a verifier's best and worst answers so far and tries again."""

from __future__ import annotations

from ...core.checks import at_least
from ...rewards.scorer import Scorer
from ...select import extract_answer
from ..answers import Extract, sample, score_of
from ..decisions import DecideBy
from ..result import SearchResult
from ..run import SearchRun
from ..strategy import strategy
from .thread import answers_to

REFINE = """{question}

The best answer so far, rated {best_score:.3g} by a verifier:
{best}

The worst one so far, rated {worst_score:.3g}:
{worst}

Write an answer that this verifier would rate above the best one. Keep what made that one better, and avoid \
what made the other worse."""


@strategy("rounds of answers, each shown the verifier's best and worst ones so far")
async def iterative_agent_decoding(
    run: SearchRun,
    *,
    n: int = 4,
    scorer: Scorer,
    max_rounds: int = 3,
    refine_prompt: str = REFINE,
    decide_by: DecideBy = "max",
    extract: Extract = extract_answer,
) -> SearchResult:
    """Writes rounds of `n` answers, shown the best and the worst; lacks an environment's feedback.

    Chakraborty et al., "Review, Refine, Repeat: Understanding Iterative Decoding of AI Agents with Dynamic
    Evaluation and Selection", arXiv 2504.01931 (IAD).

    Args:
        n: concurrent answers per round; 1 is the sequential search, whose first prompt shows the one answer
            as best and worst.
        scorer: the verifier; it scores finished answers.
        max_rounds: rounds after the first answers.
        refine_prompt: with the fields {question}, {best}, {best_score}, {worst} and {worst_score}.
        decide_by, extract: as in `best_of_n`.

    Only an answer that the verifier rates higher replaces the best one, so the result is never rated below
    the first answers. Departures: the feedback is the two answers with their ratings; the paper adds verbal
    feedback from the environments of its tasks; the wording.
    """
    at_least(1, n=n)
    at_least(0, max_rounds=max_rounds)
    run.decide_by(decide_by, extract)
    answers = await sample(run, n, scorer)
    for _ in range(max_rounds):
        if run.over:
            break
        best, worst = max(answers, key=score_of), min(answers, key=score_of)
        said = refine_prompt.format(
            question=run.question,
            best=best.text,
            best_score=score_of(best),
            worst=worst.text,
            worst_score=score_of(worst),
        )
        answers += await answers_to(run, said, n, scorer, sources=(best.node, worst.node))
    return await run.result()
