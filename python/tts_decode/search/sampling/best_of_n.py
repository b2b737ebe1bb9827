"""Best-of-n: samples whole answers and keeps the one with the highest score."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...core.checks import at_least
from ...core.running import gather
from ...rewards.scorer import Scorer
from ...select import extract_answer
from ..answers import Extract
from ..decisions import DecideBy
from ..result import SearchResult
from ..run import SearchRun
from ..strategy import strategy

if TYPE_CHECKING:
    from ...core.interfaces import Branch


@strategy("n independent answers, the best-scored one wins")
async def best_of_n(
    run: SearchRun,
    *,
    n: int = 16,
    scorer: Scorer,
    decide_by: DecideBy = "max",
    agg_strategy: str = "last",
    extract: Extract = extract_answer,
) -> SearchResult:
    """Samples `n` independent answers to their end; the highest score wins, or a vote.

    Cobbe et al., "Training Verifiers to Solve Math Word Problems", arXiv 2110.14168, section 4; Brown et al.,
    "Large Language Monkeys", arXiv 2407.21787.

    Args:
        n: number of samples.
        scorer: scores finished samples; also each of their steps, unless `agg_strategy` is "last".
        decide_by: which candidate is the answer: "max", the best-scored one; "last", the one with the best
            last step; "weighted" or "majority", a vote of answers. See `search.decisions`.
        agg_strategy: how one score is computed from the scores of steps: a name of `select.aggregation`.
        extract: the answer in a text, or None to abstain.

    There is no barrier: a sample is scored and its pages are freed as soon as it ends.

    Departures. None.
    """
    at_least(1, n=n)
    run.aggregate_by(agg_strategy)
    run.decide_by(decide_by, extract)

    async def sample(branch: Branch) -> None:
        while not branch.finished:
            await run.step([branch])
            if branch.finished or agg_strategy != "last":
                await run.score([branch], scorer)
        run.end(branch)

    await gather(sample(branch) for branch in run.fork(run.root, n))
    return await run.result()
