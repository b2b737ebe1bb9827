"""Budget forcing: caps the thinking, and suppresses an early end of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...core.checks import at_least
from ...core.running import gather
from ...rewards.scorer import Scorer
from ...select import extract_answer
from ..answers import Extract, concluded, finish
from ..decisions import DecideBy
from ..result import Candidate, SearchResult
from ..run import SearchRun
from ..strategy import strategy
from .forcing import complete_answer, force, sample_upto, take_back

if TYPE_CHECKING:
    from ...core.interfaces import Branch


@strategy("thinking goes on when the model would end it, and is cut at a cap")
async def budget_forcing(
    run: SearchRun,
    *,
    n: int = 1,
    scorer: Scorer | None = None,
    num_ignore: int = 1,
    max_tokens_thinking: int = 32000,
    rethink: str = "Wait",
    end_of_thinking: str = "</think>",
    final_answer: str = "\n\nFinal answer:",
    decide_by: DecideBy = "max",
    extract: Extract = extract_answer,
) -> SearchResult:
    """Replaces early ends of thinking with "Wait"; at a cap, cuts it and forces the final answer.

    Muennighoff et al., "s1: Simple test-time scaling", arXiv 2501.19393, section 3.1. Defaults are those of
    its code. Its s1-32B was tuned to think; the strategy works with any model.

    Args:
        n: concurrent lines of thought.
        num_ignore: ends of thinking that are replaced; 0: the cap alone acts.
        max_tokens_thinking: maximum number of tokens of the thinking, including forced ones, or the root's
            `max_tokens` if that is less. The answer after it may have the root's `max_tokens` again.
        rethink: what replaces an end.
        end_of_thinking: text that ends the thinking, as the end of the sequence also does; "" for a model
            without such text.
        final_answer: forced at the cap, after `end_of_thinking`.
        scorer, extract: which of `n` > 1 lines wins: the best-scored one, or without a scorer a vote over
            what `extract` reads from each.
        decide_by: as in `best_of_n`, where there is a scorer.

    The branch rolls back in place, so only the token before the end is computed again, for its logits.

    Departures: `n` lines, as in the paper's majority vote over runs.
    """
    at_least(1, n=n, max_tokens_thinking=max_tokens_thinking)
    run.refuse_constraint("budget_forcing", "forces its rethink and final_answer into answers")
    run.decide_by(decide_by, extract)
    at_least(0, num_ignore=num_ignore)
    cap = min(max_tokens_thinking, run.root.sampling.max_tokens)
    stop = (end_of_thinking,) if end_of_thinking else ()

    async def line(branch: Branch) -> Candidate:
        for ignored in range(num_ignore + 1):
            reason = await sample_upto(run, branch, cap, stop)
            if reason not in ("stop_string", "eos") or ignored == num_ignore:
                break
            take_back(run, branch, end_of_thinking)
            if not await force(run, branch, rethink):
                break
        if reason == "stop_string" or (
            reason == "max_tokens" and await force(run, branch, end_of_thinking + final_answer)
        ):
            await complete_answer(run, branch)
        return await finish(run, branch, scorer)

    answers = await gather(line(branch) for branch in run.fork(run.root, n))
    return await concluded(run, scorer, extract, answers)
