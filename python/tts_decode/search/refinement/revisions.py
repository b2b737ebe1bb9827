"""Sequential revisions without the trained reviser: chains of answers, each in sight of those before it."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Literal

from ...core.checks import at_least
from ...core.running import gather
from ...errors import PromptTooLongError
from ...rewards.scorer import Scorer
from ...select import extract_answer
from ..answers import Extract, elected, finish, score_of
from ..result import Candidate, SearchResult
from ..run import SearchRun
from ..strategy import strategy
from .thread import answers_to

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...core.interfaces import Branch

REVISE = """{question}

Earlier attempts, the last one latest:
{attempts}
They may be wrong. Answer the question again, from the beginning, and correct what was wrong."""


@strategy("chains of revised answers side by side; the best of each chain, then the best chain")
async def revisions(
    run: SearchRun,
    *,
    n: int = 16,
    scorer: Scorer,
    num_sequential: int = 4,
    max_attempts: int = 4,
    refine_prompt: str = REVISE,
    decide_by: Literal["chains", "max", "last", "weighted", "majority"] = "chains",
    extract: Extract = extract_answer,
) -> SearchResult:
    """`n` answers in `n / num_sequential` chains side by side; each answer after a chain's first is written
    in sight of the chain's last ones.

    Snell et al., "Scaling LLM Test-Time Compute Optimally", arXiv 2408.03314, section 6: the ratio of
    sequential to parallel sampling at a budget of n answers.

    Args:
        n: answers in all.
        num_sequential: answers of a chain, a divisor of n: 1 is best-of-n by weighted vote, n a single chain.
        max_attempts: the chain's last answers that a prompt shows, 4 in the paper.
        refine_prompt: with the fields {question} and {attempts}, the answers in order, numbered.
        scorer: scores of at least 0.
        decide_by: "chains", as published: see below; the others as in `best_of_n`, over all answers.
        extract: the answer in a text, or None to abstain.

    In each chain the answer with the largest sum of scores is found, and its best-scored text stands for the
    chain; among these texts the answer is chosen in the same way (`votes` are that last sum).

    Departures. The paper trains a model on chains of wrong answers that lead to a right one; any model is
    prompted here. An attempt that came to no end of its own is not shown.
    """
    at_least(1, n=n, num_sequential=num_sequential, max_attempts=max_attempts)
    if n % num_sequential:
        raise ValueError(f"num_sequential: got {num_sequential}, expected a divisor of n = {n}")
    run.decide_by(decide_by, extract, "chains")

    async def chain(branch: Branch) -> list[Candidate]:
        answers = [await finish(run, branch, scorer)]
        with suppress(PromptTooLongError):
            while len(answers) < num_sequential and not run.over:
                shown = [answer for answer in answers if answer.complete][-max_attempts:]
                attempts = "".join(f"{i}. {answer.text.strip()}\n" for i, answer in enumerate(shown, start=1))
                said = refine_prompt.format(question=run.question, attempts=attempts)
                answers += await answers_to(
                    run, said, scorer=scorer, sources=tuple(answer.node for answer in shown)
                )
        return answers

    chains = await gather(chain(branch) for branch in run.fork(run.root, n // num_sequential))
    if decide_by != "chains":
        return await run.result()
    bests = [(await _weighted(answers, extract))[0] for answers in chains]
    return await run.result(*await _weighted(bests, extract))


async def _weighted(answers: Sequence[Candidate], extract: Extract) -> tuple[Candidate, dict[str, float]]:
    """The best-scored one of those whose answer has the largest sum of scores; the sums."""
    ended = [answer for answer in answers if answer.complete] or answers
    return await elected(ended, extract, [max(score_of(answer), 0.0) for answer in ended], rank=score_of)
