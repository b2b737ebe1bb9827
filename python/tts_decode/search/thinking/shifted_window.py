"""Shifted thinking window: reasoning without tags, up to a cap, then the answer."""

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
from .forcing import complete_answer, force, sample_upto

if TYPE_CHECKING:
    from ...core.interfaces import Branch

ENOUGH = "\n\nThat is enough thought. The final answer is:\n\n"


@strategy("reasoning without think tags, cut at a cap, then a forced answer")
async def shifted_window(
    run: SearchRun,
    *,
    n: int = 1,
    scorer: Scorer | None = None,
    max_tokens_thinking: int = 4096,
    final_answer: str = ENOUGH,
    decide_by: DecideBy = "max",
    extract: Extract = extract_answer,
) -> SearchResult:
    """Asks a line that fills its window for the answer; lacks the tuned model.

    Simple problems end by themselves inside the window.

    Yu et al., "Z1: Efficient Test-time Scaling with Code", arXiv 2504.00810, the Shifted Thinking Window. Its
    Z1-7B was tuned on short and long solutions so that the length follows the difficulty; the strategy works
    with any model.

    Args:
        n: concurrent lines.
        max_tokens_thinking: the window, tokens (default: as in its code), or the root's `max_tokens` if
            that is less. A forced answer may have the root's `max_tokens` again.
        final_answer: the sentence, forced at the end of the window.
        scorer, extract: which of `n` > 1 lines wins: the best-scored one, or without a scorer a vote over
            what `extract` reads from each.
        decide_by: as in `best_of_n`, where there is a scorer.

    The answer continues from the KV of the window.

    Departures: `n`, and the wording of the sentence.
    """
    at_least(1, n=n, max_tokens_thinking=max_tokens_thinking)
    run.refuse_constraint("shifted_window", "forces its final_answer into answers")
    run.decide_by(decide_by, extract)
    window = min(max_tokens_thinking, run.root.sampling.max_tokens)

    async def line(branch: Branch) -> Candidate:
        reason = await sample_upto(run, branch, window)
        if reason == "max_tokens" and await force(run, branch, final_answer):
            await complete_answer(run, branch)
        return await finish(run, branch, scorer)

    answers = await gather(line(branch) for branch in run.fork(run.root, n))
    return await concluded(run, scorer, extract, answers)
