"""Sequential revisions without the trained reviser: chains of answers, each shown the previous ones."""

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
    """Writes chains of answers, each shown the previous ones of its chain; lacks the trained reviser.

    Snell et al., "Scaling LLM Test-Time Compute Optimally", arXiv 2408.03314, section 6: the ratio of
    sequential to parallel sampling at a budget of n answers. There are `n / num_sequential` chains.

    Args:
        n: total number of answers.
        num_sequential: answers of a chain, a divisor of n: 1 is best-of-n by weighted vote, n a single chain.
        max_attempts: the chain's last answers that a prompt shows, 4 in the paper.
        refine_prompt: with the fields {question} and {attempts}, the answers in order, numbered.
        scorer: scores of at least 0.
        decide_by: "chains", as published: see below; the others as in `best_of_n`, over all answers.
        extract: the answer in a text, or None to abstain.

    Each chain is represented by the best-scored text of its answer with the largest sum of scores; among
    these texts the answer is chosen in the same way (`votes` are these final sums).

    Departures. The paper trains a model on chains of wrong answers that lead to a right one; any model is
    prompted here. An attempt that was cut short is not shown.
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
    """Returns the best-scored text of the answer with the largest sum of scores, and the sums."""
    ended = [answer for answer in answers if answer.complete] or answers
    return await elected(ended, extract, [max(score_of(answer), 0.0) for answer in ended], rank=score_of)
