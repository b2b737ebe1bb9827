"""Sequential Monte Carlo over branches, shared by particle filtering and particle Gibbs."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from tts_kernels.checks import number

from ...core.checks import at_least, check_choice
from ...rewards.scorer import Scorer
from ...select import (
    aggregate,
    annealed_temperature,
    effective_sample_size,
    multinomial,
    particle_weights,
    systematic,
)
from ..result import Candidate
from ..run import SearchRun

if TYPE_CHECKING:
    from ...core.interfaces import Branch

Resampling = Literal["multinomial", "systematic", "entropic"]


@dataclass(frozen=True)
class Rule:
    """How particles are weighted and resampled; the fields are the options of `particle_filter`."""

    max_steps: int
    softmax_temperature: float
    resampling: Resampling
    ess_threshold: float = 0.5
    early_phase: float = 0.5
    resample_threshold: float = 1.0
    absorbing: bool = False
    agg_strategy: str = "last"

    def __post_init__(self) -> None:
        at_least(1, max_steps=self.max_steps)
        number("softmax_temperature", self.softmax_temperature, above=0)
        check_choice("resampling", self.resampling, get_args(Resampling))
        for name in ("ess_threshold", "early_phase", "resample_threshold"):
            number(name, getattr(self, name), low=0, high=1)

    def weights(self, scores: Sequence[float], before: Sequence[float]) -> list[float]:
        """Returns the weights of particles with these scores, given their previous weights; they sum to 1."""
        gains = particle_weights(scores, self.softmax_temperature)
        weights = [weight * gain for weight, gain in zip(before, gains, strict=True)]
        total = math.fsum(weights)
        return [weight / total for weight in weights] if total else gains  # they underflow

    def draw(self, weights: Sequence[float], count: int, step: int, rng: random.Random) -> list[int] | None:
        """Returns the indices that continue after `step` steps; None if all do, as enough are effective."""
        if self.resample_threshold < 1 and effective_sample_size(weights) >= self.resample_threshold * len(
            weights
        ):
            return None
        if self.resampling == "multinomial":
            return multinomial(weights, count, rng)
        if self.resampling == "entropic":
            progress = step / self.max_steps
            hotter = annealed_temperature(weights, progress, self.ess_threshold, self.early_phase)
            top = max(weights)
            weights = [(weight / top) ** (1 / hotter) for weight in weights]
        return systematic(weights, count, rng)


async def propagate(
    run: SearchRun, n: int, scorer: Scorer, rule: Rule, reference: Branch | None = None
) -> tuple[list[Branch], list[float]]:
    """Runs `n` particles from the root to their ends, resampled after each step; also returns weights.

    The weights sum to 1; equal particles may be one branch. A particle's weight is the product of the weights
    of its scores, one per step since it was last drawn. With a `reference` it is conditional SMC (Andrieu,
    Doucet and Holenstein, "Particle Markov chain Monte Carlo methods", JRSS B 2010): the reference is the
    last particle, keeps its path, and competes at each step with the score that it had at that step.
    """
    particles = run.fork(run.root, n if reference is None else n - 1)
    weights = [1 / n] * n
    open_ = list(range(n))  # indices of the particles that are weighted and drawn; n - 1: the reference
    for step in range(1, rule.max_steps + 1):
        moving = [branch for branch in particles if not branch.finished]
        await run.step(moving)
        await run.score(moving, scorer)
        scores = run.aggregated(particles)
        ended = [branch.finished for branch in particles]
        if reference is not None:
            upto = len(run.root.scores) + step
            scores.append(aggregate(reference.scores[:upto], rule.agg_strategy))
            ended.append(step >= len(reference.steps) - len(run.root.steps))
        mass = math.fsum(weights[i] for i in open_)
        fresh = rule.weights([scores[i] for i in open_], [weights[i] for i in open_])
        for i, weight in zip(open_, fresh, strict=True):
            weights[i] = mass * weight
        if run.over or step == rule.max_steps or all(branch.finished for branch in particles):
            break
        if rule.absorbing:
            open_ = [i for i in open_ if not ended[i]]
        places = [i for i in open_ if i < len(particles)]
        drawn = rule.draw([weights[i] for i in open_], len(places), step, run.rng)
        if drawn is not None:
            chosen = dict(zip(places, (open_[k] for k in drawn), strict=True))
            particles = _resampled(run, particles, chosen, reference, step)
            mass = math.fsum(weights[i] for i in open_)
            for i in open_:
                weights[i] = mass / len(open_)
    return (particles if reference is None else [*particles, reference]), weights


def end_all(run: SearchRun, particles: Sequence[Branch]) -> list[Candidate]:
    """Makes each particle a candidate; a branch that represents several is as many candidates."""
    return [
        run.end(run.fork(branch)[0] if branch in particles[i + 1 :] else branch)
        for i, branch in enumerate(particles)
    ]


def _resampled(
    run: SearchRun, particles: list[Branch], chosen: dict[int, int], reference: Branch | None, step: int
) -> list[Branch]:
    """Returns the particles, with those at the indices `chosen` replaced.

    Replacements are forks of unfinished particles, or finished ones themselves; the reference is the one
    after the last. Particles without a place are released.
    """
    counts = Counter(chosen.values())
    moving = [i for i, branch in enumerate(particles) if not branch.finished]
    children = iter(run.expand([particles[i] for i in moving], [counts[i] for i in moving]))
    forks = {i: [next(children) for _ in range(counts[i])] for i in moving}
    everyone = list(particles)
    if reference is not None:
        everyone.append(reference)
        taken = reference.steps[len(run.root.steps) :]
        if counts[len(particles)] and step < len(taken):
            at = run.root.length + sum(len(own.tokens) for own in taken[:step])
            forks[len(particles)] = run.fork(reference, counts[len(particles)], at)
            for branch in forks[len(particles)]:
                del branch.scores[len(run.root.scores) + step :]
    drawn = list(particles)
    for place, i in chosen.items():
        drawn[place] = forks[i].pop(0) if i in forks else everyone[i]
    ended = dict.fromkeys(branch for branch in particles if branch.finished and branch is not reference)
    run.prune([branch for branch in ended if branch not in drawn])
    return drawn
