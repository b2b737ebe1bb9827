"""REBASE: reward-balanced tree search."""

from __future__ import annotations

from typing import Literal

from ...core.checks import at_least, check_choice
from ...rewards.scorer import Scorer
from ...select import ALLOCATIONS, extract_answer, rebase_weights
from ..answers import Extract
from ..decisions import DecideBy
from ..result import SearchResult
from ..run import SearchRun
from ..strategy import strategy


@strategy("tree search, continuations shared out by softmax of the scores")
async def rebase(
    run: SearchRun,
    *,
    n: int = 16,
    scorer: Scorer,
    max_steps: int = 25,
    softmax_temperature: float = 0.2,
    allocation: Literal["published", "exact"] = "published",
    decide_by: DecideBy = "max",
    agg_strategy: str = "last",
    extract: Extract = extract_answer,
) -> SearchResult:
    """Gives every unfinished node continuations in proportion to softmax(score / softmax_temperature).

    Wu et al., "Inference Scaling Laws: An Empirical Analysis of Compute-Optimal Inference for Problem-Solving
    with Language Models", arXiv 2408.00724, Reward Balanced Search. Defaults are those of its code.

    Args:
        n: continuations at the first step; one less for each branch that has finished.
        scorer: scores every step.
        max_steps: depth at which the search ends with what it has.
        softmax_temperature: balances nodes: a low value follows the best, a high value spreads evenly. The
            default suits scores in [0, 1].
        allocation: how the shares become whole numbers: "published", the walk of ceilings of the paper's
            code, which gives the lowest nodes nothing (`select.walk_ceilings`); "exact", largest remainders,
            which keep nearly every node (`select.allocate`) and hold more KV.
        decide_by: which candidate is the answer: "max", the best-scored one; "last", the one with the best
            last step; "weighted" or "majority", a vote of answers. See `search.decisions`.
        agg_strategy: how a node's score is computed from the scores on its path: "last" as published, or
            another of `select.aggregation`.
        extract: the answer in a text, or None to abstain.

    The paper samples at temperature 1, and its scripts decide by a majority, weighted or not. Departures: the
    walk uses exact numbers; the code's float32 may give a node one more, and so exceed the width, or one of
    several equal nodes two and the last one none. Among equal nodes the first is served first, in the code
    the last.
    """
    at_least(1, n=n)
    check_choice("allocation", allocation, [*ALLOCATIONS])
    run.aggregate_by(agg_strategy)
    run.decide_by(decide_by, extract)
    run.limit_steps(max_steps)
    live = run.fork(run.root, n)
    while live := await run.advance(live, scorer):
        weights = rebase_weights(run.aggregated(live), softmax_temperature)
        live = run.expand(
            live, ALLOCATIONS[allocation](len(live), weights)
        )  # len(live) = n less the finished
    return await run.result()
