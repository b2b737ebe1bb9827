"""Particle Gibbs: consecutive particle filters, each conditioned on an answer of the previous one."""

from __future__ import annotations

from typing import Literal

from ...core.checks import at_least
from ...rewards.scorer import Scorer
from ...select import extract_answer, multinomial
from ..answers import Extract
from ..result import SearchResult
from ..run import SearchRun
from ..strategy import strategy
from .population import Resampling, Rule, end_all, propagate


@strategy("rounds of particle filtering around a reference answer")
async def particle_gibbs(
    run: SearchRun,
    *,
    n: int = 16,
    scorer: Scorer,
    max_rounds: int = 1,
    max_steps: int = 40,
    softmax_temperature: float = 1.0,
    resampling: Resampling = "multinomial",
    resample_threshold: float = 1.0,
    absorbing: bool = False,
    decide_by: Literal["max", "last", "weighted", "majority", "drawn"] = "max",
    agg_strategy: str = "last",
    extract: Extract = extract_answer,
) -> SearchResult:
    """Runs particle filters in a row, each with one particle of the previous filter as its reference.

    Puri et al., "A Probabilistic Inference Approach to Inference-Time Scaling of LLMs using Particle-Based
    Monte Carlo Methods", arXiv 2502.01618, the extension by particle Gibbs. At the end of a round one
    particle is drawn by its weight and becomes the reference of the next round: its path stays the same
    whatever is drawn. The other `n - 1` particles may be drawn from its state at their step, which forks it.

    Args:
        n: particles of a filter, the reference included; at least 2 unless `max_rounds` is 0.
        max_rounds: filters after the first, so iterations less one; with 0 it is `particle_filter`.
        scorer, max_steps, softmax_temperature, resampling: as in `particle_filter`.
        resample_threshold, absorbing, agg_strategy, extract: as in `particle_filter`.
        decide_by: as in `particle_filter`, over all rounds; "drawn" draws from the last one.

    Candidates are the particles of every round; a reference is one of them once for each round it was in.

    Departures. At each step the reference is weighted by its score at that step: the published code uses its
    score one step later, and the package its_hub always uses its finished answer's score. The answer may come
    from any round; the published code considers only the last one.
    """
    at_least(1, n=n)
    at_least(0, max_rounds=max_rounds)
    if n == 1 and max_rounds:
        raise ValueError("n: got 1, expected 2 or more unless max_rounds is 0: one particle is the reference")
    rule = Rule(
        max_steps,
        softmax_temperature,
        resampling,
        resample_threshold=resample_threshold,
        absorbing=absorbing,
        agg_strategy=agg_strategy,
    )
    run.aggregate_by(agg_strategy)
    run.decide_by(decide_by, extract, "drawn")
    reference = None
    for number in range(max_rounds + 1):
        particles, weights = await propagate(run, n, scorer, rule, reference)
        if run.over:
            break
        if number < max_rounds:
            (reference,) = run.fork(particles[multinomial(weights, 1, run.rng)[0]])
        ended = end_all(run, particles)
    if decide_by == "drawn" and not run.over:
        return await run.result(ended[multinomial(weights, 1, run.rng)[0]])
    return await run.result()
