"""Test-time preference optimization: turns a reward model's preference into words, and these into answers."""

from __future__ import annotations

from ...core.checks import at_least
from ...rewards.scorer import Scorer
from ...select import extract_answer
from ..answers import Extract, sample, score_of
from ..decisions import DecideBy
from ..result import SearchResult
from ..run import SearchRun
from ..strategy import strategy
from .thread import Thread

PAIR = """{question}

Chosen response:
{chosen}

Rejected response:
{rejected}

"""
LOSS = (
    PAIR
    + "Why was the one chosen and the other rejected? Go through the strengths and faults of both, briefly."
)
GRADIENT = (
    PAIR
    + """What was said about them:
{loss}

What should change in the chosen response to make it better? List the changes; do not write the response."""
)
UPDATE = (
    PAIR
    + """What was said about them:
{loss}

What should change in the chosen response:
{gradient}

Write the improved response and nothing else."""
)


@strategy("rounds of answers, led by criticism of the reward model's best against its worst")
async def tpo(
    run: SearchRun,
    *,
    n: int = 5,
    scorer: Scorer,
    max_rounds: int = 2,
    loss_prompt: str = LOSS,
    gradient_prompt: str = GRADIENT,
    update_prompt: str = UPDATE,
    decide_by: DecideBy = "max",
    extract: Extract = extract_answer,
) -> SearchResult:
    """Compares the best answer with the worst in words, and rewrites answers by the advice drawn from it.

    Li et al., "Test-Time Preference Optimization: On-the-Fly Alignment via Iterative Textual Feedback", arXiv
    2501.12895 (its code: yafuly/TPO, over TextGrad). Defaults are the paper's D2-N5: each update writes `n`
    new answers.

    Args:
        n: concurrent answers of a round.
        scorer: the reward model; it scores finished answers.
        max_rounds: updates after the first round.
        loss_prompt, gradient_prompt, update_prompt: with the fields {question}, {chosen} and {rejected}; the
            second and third also with {loss}, the third with {gradient}. They begin alike, so that the KV of
            question and pair is resident.
        decide_by, extract: as in `best_of_n`.

    Chosen and rejected are the best- and worst-scored answers of all rounds, and the best one is the result.
    Departures: the wording. As in the code, the comparison takes place even if all answers are the same text.
    """
    at_least(1, n=n)
    at_least(0, max_rounds=max_rounds)
    run.decide_by(decide_by, extract)
    answers = await sample(run, n, scorer)
    thread = Thread(run)
    for _ in range(max_rounds):
        if run.over:
            break
        chosen, rejected = max(answers, key=score_of), min(answers, key=score_of)
        fields = {"question": run.question, "chosen": chosen.text, "rejected": rejected.text}
        sources = (chosen.node, rejected.node)
        for name, prompt in (("loss", loss_prompt), ("gradient", gradient_prompt)):
            (fields[name],) = await thread.replies(prompt.format(**fields), sources=sources)
        if run.over:
            break
        answers += await thread.answers(update_prompt.format(**fields), n, scorer, sources=sources)
    thread.close()
    return await run.result()
