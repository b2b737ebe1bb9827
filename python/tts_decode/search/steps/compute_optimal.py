"""Compute-optimal scaling: how hard a question is decides how it is searched."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...core.checks import at_least
from ...rewards.scorer import Scorer
from ...select import difficulty_bin, extract_answer
from ..answers import Extract, sample
from ..decisions import DecideBy
from ..result import SearchResult
from ..run import SearchRun
from ..sampling import best_of_n
from ..strategy import Strategy, strategy
from .beam_search import beam_search
from .dvts import dvts

STRATEGIES_BY_DIFFICULTY: tuple[Strategy[...], ...] = (best_of_n, best_of_n, beam_search, beam_search, dvts)
"""A strategy for each of five bins, easiest first."""


@strategy("a few samples tell how hard the question is, which chooses the strategy")
async def compute_optimal(
    run: SearchRun,
    *,
    n: int = 16,
    scorer: Scorer,
    num_probes: int = 4,
    edges: Sequence[float] = (0.8, 0.6, 0.4, 0.2),
    strategies: Sequence[Strategy[...]] = STRATEGIES_BY_DIFFICULTY,
    decide_by: DecideBy = "max",
    agg_strategy: str = "last",
    extract: Extract = extract_answer,
) -> SearchResult:
    """The mean score of a few sampled answers puts the question in a bin; each bin has its own strategy.

    Snell et al., "Scaling LLM Test-Time Compute Optimally", arXiv 2408.03314, section 3 (model-predicted
    difficulty); Liu et al., "Can 1B LLM Surpass 405B LLM?", arXiv 2502.06703, make the choice depend on the
    model and the scorer too: search wins on small models, best-of-n on large ones.

    n             size of the chosen strategy; the probes come on top.
    scorer        scores probes and search; the default edges expect scores in [0, 1].
    num_probes    answers sampled to estimate the difficulty; they stay candidates.
    edges         falling mean scores that divide the bins. `select.difficulty_edges` makes quantiles, as
                  published, of the mean scores of similar questions; the default cuts [0, 1] evenly, whatever
                  your model is.
    strategies    one more than `edges`, easiest bin first. Each gets `n` as its size, and `scorer`,
                  `decide_by`, `agg_strategy` and `extract` if it has them. Default: best-of-n for the two
                  easiest of five bins and beam search for the next two, as published; diverse verifier tree
                  search for the hardest, where the paper finds no method that helps.
    decide_by, agg_strategy, extract   as in `beam_search`.

    Departures. The paper estimates the difficulty from 2048 samples a question and does not count their cost.
    It chooses the strategy of each bin by accuracy on held-out questions; here the caller does.
    """
    at_least(1, n=n, num_probes=num_probes)
    if len(strategies) != len(edges) + 1:
        raise ValueError(
            f"strategies: got {len(strategies)} entries for {len(edges)} edges, expected one more"
        )
    difficulty_bin(0.0, edges)  # checks them
    for chosen in strategies:
        width = chosen.options.get("beam_width")
        if isinstance(width, int) and n % width:
            raise ValueError(f"beam_width: got {width} of {chosen.name}, expected a divisor of n = {n}")
    run.aggregate_by(agg_strategy)
    run.decide_by(decide_by, extract)
    samples = await sample(run, num_probes, scorer)
    if run.over:
        return run.result()
    chosen = strategies[difficulty_bin(math.fsum(c.scores[-1] for c in samples) / num_probes, edges)]
    options = {
        chosen.size: n,
        "scorer": scorer,
        "decide_by": decide_by,
        "agg_strategy": agg_strategy,
        "extract": extract,
    }
    return await chosen.body(run, **{name: options[name] for name in options if name in chosen.parameters})
