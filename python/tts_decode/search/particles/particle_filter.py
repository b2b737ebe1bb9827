"""Particle filtering: samples of the model's answers, weighted by the scorer as they grow."""

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


@strategy("n particles, resampled by their scores after each step")
async def particle_filter(
    run: SearchRun,
    *,
    n: int = 16,
    scorer: Scorer,
    max_steps: int = 40,
    softmax_temperature: float = 1.0,
    resampling: Resampling = "multinomial",
    ess_threshold: float = 0.5,
    early_phase: float = 0.5,
    resample_threshold: float = 1.0,
    absorbing: bool = False,
    decide_by: Literal["max", "last", "weighted", "majority", "drawn"] = "max",
    agg_strategy: str = "last",
    extract: Extract = extract_answer,
) -> SearchResult:
    """Steps `n` particles, then draws `n` of them, with replacement, by softmax(logit(score) / T).

    Puri et al., "A Probabilistic Inference Approach to Inference-Time Scaling of LLMs using Particle-Based
    Monte Carlo Methods", arXiv 2502.01618, algorithm 1. The model is the transition of a state-space model
    and the score its likelihood, so the search samples likely answers instead of climbing to the best.

    Args:
        n: particles.
        scorer: gives probabilities, or log-probabilities, which are negative; scores above 1 raise
            ValueError.
        max_steps: steps before the search ends with what it has.
        softmax_temperature: T: a low value follows the best, a high value keeps the particles as they are.
        resampling: "multinomial" as published; "systematic" adds less noise; "entropic" is systematic with
            weights flattened while early steps leave few effective particles: the entropic annealing of
            Giannone et al., "Mitigating Premature Exploitation in Particle-based Monte Carlo for
            Inference-Time Scaling", arXiv 2510.05825.
        ess_threshold: share of effective particles below which "entropic" acts.
        early_phase: share of `max_steps` in which "entropic" acts.
        resample_threshold: share of effective particles below which they are resampled; until then all
            continue, and a particle's weight is the product of its steps' weights. 1, as published: they are
            resampled after each step.
        absorbing: whether a finished particle keeps its weight and its place: it is no longer drawn, copied
            or dropped, and the others are drawn among themselves.
        decide_by: which candidate is the answer: "max", the best-scored one; "last", the one with the best
            last step; "weighted" or "majority", a vote of answers, see `search.decisions`; "drawn", one drawn
            by the weights.
        agg_strategy: how a particle's score is computed from its steps' scores: "last" as published, or
            another of `select.aggregation`.
        extract: the answer in a text, or None to abstain.

    Unless `absorbing`, finished particles stay in the draw with their last score: they may be copied and may
    die out. The candidates are the particles, copies included, so that a vote over them is a vote of the
    posterior at the last resampling.

    Departures. The last step's particles are not resampled; the package its_hub resamples them and may lose
    the best one. The paper's look-ahead modulation for "entropic" is left out; `max_steps` should be close to
    the number of steps that answers take, or the early phase never ends.
    """
    at_least(1, n=n)
    rule = Rule(
        max_steps,
        softmax_temperature,
        resampling,
        ess_threshold,
        early_phase,
        resample_threshold,
        absorbing,
        agg_strategy,
    )
    run.aggregate_by(agg_strategy)
    run.decide_by(decide_by, extract, "drawn")
    particles, weights = await propagate(run, n, scorer, rule)
    ended = end_all(run, particles)
    if decide_by == "drawn" and not run.over:
        return await run.result(ended[multinomial(weights, 1, run.rng)[0]])
    return await run.result()
