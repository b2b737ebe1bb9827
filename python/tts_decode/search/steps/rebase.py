"""REBASE: reward-balanced tree search."""

from __future__ import annotations

from ...core.checks import at_least
from ...rewards.scorer import Scorer
from ...select import allocate, rebase_weights
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
    agg_strategy: str = "last",
) -> SearchResult:
    """Every unfinished node gets continuations in proportion to softmax(score / softmax_temperature).

    Wu et al., "Inference Scaling Laws: An Empirical Analysis of Compute-Optimal Inference for Problem-Solving
    with Language Models", arXiv 2408.00724, Reward Balanced Search. Defaults are those of its code.

    n                    continuations at the first step; one less for each branch that has finished.
    scorer               scores every step.
    max_steps            depth at which the search ends with what it has.
    softmax_temperature  balances nodes: low follows the best, high spreads evenly. The default suits scores
                         in [0, 1].
    agg_strategy         makes a node's score of the scores on its path: "last" as published, or another of
                         `select.aggregation`.

    The paper samples at temperature 1. Departures: largest remainders allocate the width, which always adds
    up; the published walk of ceilings does not treat equal scores equally (`select.allocate`). The answer is
    the best-scored finished branch; the paper also votes, as `select.vote` does on `result.candidates`.
    """
    at_least(1, n=n)
    run.aggregate_by(agg_strategy)
    run.limit_steps(max_steps)
    live = run.fork(run.root, n)
    while live := await run.advance(live, scorer):
        weights = rebase_weights(run.aggregated(live), softmax_temperature)
        live = run.expand(live, allocate(len(live), weights))  # len(live) = n less the finished
    return run.result()
