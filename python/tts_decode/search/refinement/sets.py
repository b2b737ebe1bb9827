"""SETS: the model itself verifies and corrects samples, then they vote."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from ...core.checks import at_least
from ...core.running import gather
from ...errors import PromptTooLongError
from ...select import extract_answer, last_choice
from ..answers import Extract, concluded, finish
from ..result import Candidate, SearchResult
from ..run import SearchRun
from ..strategy import strategy
from .thread import Thread

if TYPE_CHECKING:
    from ...core.interfaces import Branch

ATTEMPT = "\n\nAttempt:\n{answer}"
CHECK = "\n\nCheck of this attempt:\n{check}"
VERIFY = """{history}

Check the last attempt step by step against what was asked. End with one line, either "Verdict: correct" or \
"Verdict: wrong"."""
CORRECT = """{history}

Write a new attempt that avoids what the checks found."""


@strategy("n answers, each verified and corrected by the model in rounds; a vote decides")
async def sets(
    run: SearchRun,
    *,
    n: int = 16,
    max_rounds: int = 3,
    verify_prompt: str = VERIFY,
    refine_prompt: str = CORRECT,
    extract: Extract = extract_answer,
) -> SearchResult:
    """Verifies each of `n` samples and corrects it while the model finds it wrong; then they vote.

    Chen et al., "SETS: Leveraging Self-Verification and Self-Correction for Improved Test-Time Scaling",
    arXiv 2501.19306.

    Args:
        n: number of samples.
        max_rounds: maximum number of corrections of a sample; the last one is not verified.
        verify_prompt: with the field {history}: question, attempts and checks so far, the attempt to verify
            last. The last "correct" or "wrong" of the reply counts.
        refine_prompt: with the same field, here with the check last.
        extract: the answer in an attempt's text, or None to abstain.

    The vote is over the last attempt of each sample. Each prompt begins with the history of the previous
    prompt, whose KV is resident. Departures: a reply without a verdict counts as "wrong"; the prompts are
    ours; the paper has its own for each task.
    """
    at_least(1, n=n)
    at_least(0, max_rounds=max_rounds)

    async def line(branch: Branch) -> Candidate:
        attempt = await finish(run, branch)
        history, thread = run.question, Thread(run)
        with suppress(PromptTooLongError):
            for _ in range(max_rounds):
                if run.over:
                    break
                history += ATTEMPT.format(answer=attempt.text)
                sources = (attempt.node,)
                (check,) = await thread.replies(verify_prompt.format(history=history), sources=sources)
                if run.over or last_choice(check, ("correct", "wrong")) == "correct":
                    break
                history += CHECK.format(check=check)
                (latest,) = await thread.answers(refine_prompt.format(history=history), sources=sources)
                attempt = latest if latest.complete else attempt
        thread.close()
        return attempt

    last = await gather(line(branch) for branch in run.fork(run.root, n))
    return await concluded(run, None, extract, last)
