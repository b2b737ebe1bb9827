"""3D test-time scaling: longer thinking, more parallel samples, more turns of refinement."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from ...core.checks import at_least
from ...core.running import gather
from ...errors import PromptTooLongError
from ...rewards.scorer import Scorer
from ...select import extract_answer
from ..answers import Extract, concluded, elected, eligible, finish, score_of, spoken
from ..decisions import DecideBy
from ..result import Candidate, SearchResult
from ..run import SearchRun
from ..strategy import strategy
from ..thinking.forcing import complete_answer, force, sample_upto
from .thread import Thread

if TYPE_CHECKING:
    from ...core.interfaces import Branch

REFINE = """{question}

A solution from an earlier turn:
{answer}

Look for mistakes and gaps in it, then give a better solution."""


@strategy("turns of n samples with a cap on thinking; the preferred one of a turn is refined in the next")
async def three_d(
    run: SearchRun,
    *,
    n: int = 4,
    scorer: Scorer | None = None,
    max_rounds: int = 1,
    max_tokens_thinking: int = 32000,
    end_of_thinking: str = "</think>",
    final_answer: str = "\n\nFinal answer:",
    refine_prompt: str = REFINE,
    decide_by: DecideBy = "max",
    extract: Extract = extract_answer,
) -> SearchResult:
    """Samples `n` answers per turn, each of which refines the preferred sample of the previous turn.

    Yu et al., "Extending Test-Time Scaling: A 3D Perspective with Context, Batch, and Turn", arXiv
    2511.15738: each of the three dimensions helps up to its own bound; together they go further.

    Args:
        n: the batch: concurrent samples of a turn.
        max_rounds: turns after the first.
        max_tokens_thinking: the context: the cap on the tokens of a sample's thinking, or the root's
            `max_tokens` if that is less; at the cap the final answer is forced. The answer may have the
            root's `max_tokens` again.
        end_of_thinking: text that ends the thinking; "" for a model without it. Only what follows it is
            refined.
        final_answer: forced at the cap, after `end_of_thinking`.
        refine_prompt: with the fields {question} and {answer}.
        scorer, extract: the preferred sample of a turn is the best-scored one, or without a scorer the
            likeliest with the majority's answer. The result is the preferred sample of all turns, or without
            a scorer of the last turn.
        decide_by: as in `best_of_n`, where there is a scorer.

    Departures: in some of the paper's experiments people choose and advise instead of the vote; here that is
    left to the caller's scorer. Defaults and wording are ours.
    """
    at_least(1, n=n, max_tokens_thinking=max_tokens_thinking)
    run.refuse_constraint("three_d", "forces its final_answer into answers")
    at_least(0, max_rounds=max_rounds)
    run.decide_by(decide_by, extract)
    cap = min(max_tokens_thinking, run.root.sampling.max_tokens)
    stop = (end_of_thinking,) if end_of_thinking else ()

    async def think(branch: Branch) -> Candidate:
        reason = await sample_upto(run, branch, cap, stop)
        if reason == "stop_string" or (
            reason == "max_tokens" and await force(run, branch, end_of_thinking + final_answer)
        ):
            await complete_answer(run, branch)
        return await finish(run, branch, scorer)

    turn = await gather(think(branch) for branch in run.fork(run.root, n))
    thread = Thread(run)
    with suppress(PromptTooLongError):
        for _ in range(max_rounds):
            if run.over:
                break
            pool = eligible(turn)
            best = max(pool, key=score_of) if scorer is not None else (await elected(pool, extract))[0]
            said = refine_prompt.format(question=run.question, answer=spoken(best.text, end_of_thinking))
            branches = await thread.branches(said, n, sources=(best.node,))
            latest = await gather(think(branch) for branch in branches)
            turn = [c for c in latest if c.complete] or turn
    thread.close()
    return await concluded(run, scorer, extract, turn)
