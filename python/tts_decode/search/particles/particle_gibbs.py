"""Particle Gibbs: particle filters in a row, each beside an answer that the one before settled on."""

from __future__ import annotations

from ...rewards.scorer import Scorer
from ...select import multinomial, particle_weights
from ..result import SearchResult
from ..run import SearchRun, at_least
from ..strategy import strategy
from .population import Resampling, Rule, end_all, propagate


@strategy("rounds of particle filtering around a reference answer")
async def particle_gibbs(
    run: SearchRun,
    *,
    n: int = 16,
    scorer: Scorer,
    num_iterations: int = 2,
    max_steps: int = 40,
    softmax_temperature: float = 1.0,
    resampling: Resampling = "multinomial",
    agg_strategy: str = "last",
) -> SearchResult:
    """A particle filter, then `num_iterations - 1` more in which one particle is the last round's reference.

    Puri et al., "A Probabilistic Inference Approach to Inference-Time Scaling of LLMs using Particle-Based
    Monte Carlo Methods", arXiv 2502.01618, the extension by particle Gibbs. At the end of a round one
    particle is drawn by its weight. It is the reference of the next: it keeps its course whatever is drawn,
    and the other `n - 1` particles may be drawn from where it stood at their step, which forks it there.

    n               particles of a round, the reference included: at least 2 with more than one round.
    num_iterations  rounds; with 1 it is `particle_filter`.
    scorer, max_steps, softmax_temperature, resampling, agg_strategy   as in `particle_filter`.

    Candidates are the particles of every round; a reference is there once for each round it was in.

    Departures. At each step the reference weighs what it scored at that step: in the published code its score
    is taken one step further on, and in the package its_hub it is always that of its finished answer. The
    answer is the best-scored particle of all rounds; the published code looks at the last round's only.
    """
    at_least(1, n=n, num_iterations=num_iterations)
    if n == 1 and num_iterations > 1:
        raise ValueError("n=1; expected at least 2 with num_iterations > 1: one particle is the reference")
    rule = Rule(max_steps, softmax_temperature, resampling, agg_strategy=agg_strategy)
    run.aggregate_by(agg_strategy)
    reference = None
    for iteration in range(1, num_iterations + 1):
        particles = await propagate(run, n, scorer, rule, reference)
        if run.over:
            break
        if iteration < num_iterations:
            weights = particle_weights(run.aggregated(particles), softmax_temperature)
            (reference,) = run.fork(particles[multinomial(weights, 1, run.rng)[0]])
        end_all(run, particles)
    return run.result()
