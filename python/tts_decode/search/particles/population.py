"""Sequential Monte Carlo over branches: what particle filtering and particle Gibbs have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from tts_kernels.checks import number

from ...core.checks import at_least, check_choice
from ...rewards.scorer import Scorer
from ...select import aggregate, annealed_temperature, multinomial, particle_weights, systematic
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
    agg_strategy: str = "last"

    def __post_init__(self) -> None:
        at_least(1, max_steps=self.max_steps)
        number("softmax_temperature", self.softmax_temperature, above=0)
        check_choice("resampling", self.resampling, get_args(Resampling))
        for name in ("ess_threshold", "early_phase"):
            number(name, getattr(self, name), low=0, high=1)

    def weights(self, scores: Sequence[float], step: int) -> list[float]:
        """Of particles with these scores after `step` steps; they sum to 1."""
        weights = particle_weights(scores, self.softmax_temperature)
        if self.resampling != "entropic":
            return weights
        progress = step / self.max_steps
        hotter = annealed_temperature(weights, progress, self.ess_threshold, self.early_phase)
        return particle_weights(scores, self.softmax_temperature * hotter)


async def propagate(
    run: SearchRun, n: int, scorer: Scorer, rule: Rule, reference: Branch | None = None
) -> list[Branch]:
    """`n` particles from the root to their ends, resampled after each step; equal ones may be one branch.

    With a `reference` it is conditional SMC (Andrieu, Doucet and Holenstein, "Particle Markov chain Monte
    Carlo methods", JRSS B 2010): the reference is the last particle, keeps its course, and competes at each
    step with the score that it had at that step.
    """
    particles = run.fork(run.root, n if reference is None else n - 1)
    for step in range(1, rule.max_steps + 1):
        moving = [branch for branch in particles if not branch.finished]
        await run.step(moving)
        await run.score(moving, scorer)
        if run.over or step == rule.max_steps or all(branch.finished for branch in particles):
            break
        scores = run.aggregated(particles)
        if reference is not None:
            upto = len(run.root.scores) + step
            scores.append(aggregate(reference.scores[:upto], rule.agg_strategy))
        weights = rule.weights(scores, step)
        draw = multinomial if rule.resampling == "multinomial" else systematic
        particles = _resampled(run, particles, draw(weights, len(particles), run.rng), reference, step)
    return particles if reference is None else [*particles, reference]


def end_all(run: SearchRun, particles: Sequence[Branch]) -> None:
    """Each particle becomes a candidate, a branch that stands for several as often."""
    for i, branch in enumerate(particles):
        run.end(run.fork(branch)[0] if branch in particles[i + 1 :] else branch)


def _resampled(
    run: SearchRun, particles: list[Branch], indices: list[int], reference: Branch | None, step: int
) -> list[Branch]:
    """The particles at `indices`, the reference being the one after the last: forks of the unfinished ones,
    finished ones themselves. Those not drawn are released."""
    counts = Counter(indices)
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
    drawn = [forks[i].pop(0) if i in forks else everyone[i] for i in indices]
    ended = dict.fromkeys(branch for branch in particles if branch.finished and branch is not reference)
    run.prune([branch for branch in ended if branch not in drawn])
    return drawn
