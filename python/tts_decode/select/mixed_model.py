"""Scores of groups under a mixed model: predicts a further score of each group, or of a new one."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .scores import require_finite

_POINTS = 48  # of the grid over each of the two deviations
_LEAST, _MOST = 0.01, 4.5  # ends of the grid: a score's resolution, and a multiple of the prior's scale


@dataclass(frozen=True)
class MixedModel:
    """score = a + e, where a ~ N(mu, sigma_a^2) is the group's and e ~ N(0, sigma_y^2) the score's own.

    The model of AB-MCTS-M (Inoue et al., arXiv 2503.04412) with the priors of its code (treequest), for
    scores in [0, 1]: mu ~ N(mean, mean_deviation^2), and half-normal sigma_a and sigma_y of the scales
    group_deviation and noise. Groups share mu and both sigmas.

    The code samples the posterior by NUTS. Here mu and the groups' a are integrated in closed form, and the
    sigmas lie on a grid of 48 x 48 points, evenly spaced in the logarithm from 0.01 to 4.5 scales: draws are
    exact except for the grid. Below 0.01, the resolution at which the code compares scores, a posterior of
    equal scores could not be normalised.
    """

    mean: float = 0.5
    mean_deviation: float = 0.2
    group_deviation: float = 0.2
    noise: float = 0.3

    def draws(self, groups: Sequence[Sequence[float]], rng: random.Random, new: int = 1) -> list[float]:
        """Draws the next score of each group, then of `new` groups that have none; all independent.

        Args:
            groups: the scores seen, at least one each. ValueError for an empty group, or scores that are not
                finite.
        """
        for i, scores in enumerate(groups):
            require_finite(f"groups[{i}]", scores)
            if not scores:
                raise ValueError(f"groups[{i}]: got no score, expected at least one; leave the group out")
        count = np.array([len(scores) for scores in groups], dtype=float)
        mean = np.array([math.fsum(scores) / len(scores) for scores in groups])
        sigma_a, sigma_y, cumulative, precision, weighted = self._posterior(groups, count, mean)
        drawn = []
        for j in [*range(len(groups)), *[None] * new]:
            at = int(np.searchsorted(cumulative, rng.random(), side="right").clip(0, len(cumulative) - 1))
            a, y, p = float(sigma_a[at]), float(sigma_y[at]), float(precision[at])
            mu = rng.gauss(float(weighted[at]) / p, 1 / math.sqrt(p))
            if j is None:
                level = rng.gauss(mu, a)
            else:
                known = 1 / a**2 + count[j] / y**2
                level = rng.gauss((mu / a**2 + count[j] * mean[j] / y**2) / known, 1 / math.sqrt(known))
            drawn.append(rng.gauss(level, y))
        return drawn

    def _posterior(
        self, groups: Sequence[Sequence[float]], count: NDArray[np.float64], mean: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], ...]:
        """Returns the grid's sigma_a and sigma_y, cumulative probabilities, and mu's conditional posterior.

        The last is its precision and precision times mean; all are float64 [points].
        """
        ends = self.group_deviation, self.noise
        grids = [np.geomspace(_LEAST, _MOST * scale, _POINTS) for scale in ends]
        a, y = (grid.ravel() for grid in np.meshgrid(*grids, indexing="ij"))
        squares = sum(
            math.fsum((score - m) ** 2 for score in scores) for scores, m in zip(groups, mean, strict=True)
        )
        variance = a[:, None] ** 2 + y[:, None] ** 2 / count  # of a group's mean, given mu: [points, groups]
        prior = self.mean_deviation**-2
        precision = prior + (1 / variance).sum(1)
        weighted = prior * self.mean + (mean / variance).sum(1)
        log = -(a**2) / (2 * ends[0] ** 2) - y**2 / (2 * ends[1] ** 2) + np.log(a * y)  # prior, in log sigma
        log += -(count - 1).sum() * np.log(y) - squares / (2 * y**2) - np.log(variance).sum(1) / 2
        log += weighted**2 / (2 * precision) - (mean**2 / variance).sum(1) / 2 - np.log(precision) / 2
        weights = np.exp(log - log.max())
        return a, y, np.cumsum(weights) / weights.sum(), precision, weighted


def settled(scores: Sequence[float]) -> bool:
    """Whether AB-MCTS-M leaves a subtree with these scores alone.

    It does if there are four or more, of which three quarters are equal in hundredths.
    """
    most = max(Counter(round(100 * score) for score in scores).values(), default=0)
    return len(scores) >= 4 and most >= 0.75 * len(scores)


def mixed_choice(children: Sequence[Sequence[float]], rng: random.Random, model: MixedModel) -> int | None:
    """Returns the choice of AB-MCTS-M at a node: None for a new child, or the child to continue with.

    The best draw of a next score decides between all children and a new one. A settled child is replaced by
    the next best one that is not settled, or by a new child if all are.

    Args:
        children: for each, its own score and those of all answers below it.
    """
    draws = model.draws(children, rng)
    if draws.index(max(draws)) == len(children):
        return None
    ranked = sorted(range(len(children)), key=lambda i: -draws[i])
    return next((i for i in ranked if not settled(children[i])), None)


def mixed_generator(seen: Sequence[Sequence[float]], rng: random.Random, model: MixedModel) -> int:
    """Returns which generator makes the new answer.

    Each is a group of the scores of all that it made, and the best draw wins; if there are no scores yet,
    any, with equal probability. seen: scores in the tree by generator.
    """
    if len(seen) == 1:
        return 0
    known = [i for i, scores in enumerate(seen) if scores]
    if not known:
        return rng.randrange(len(seen))
    unknown = [i for i, scores in enumerate(seen) if not scores]
    draws = model.draws([seen[i] for i in known], rng, len(unknown))
    return max(zip(draws, [*known, *unknown], strict=True), key=lambda pair: pair[0])[1]


def mixed_stack(
    children: Sequence[Sequence[float]],
    made_by: Sequence[int],
    generators: int,
    rng: random.Random,
    model: MixedModel,
) -> tuple[int | None, int]:
    """Chooses with one model per generator: returns (child or None, generator of a new one).

    Every generator's children and its new child each have a draw from the model of its children; the best
    draw of all wins, unless it is a settled child's.
    """
    options: list[tuple[float, int | None, int]] = []
    for generator in range(generators):
        own: list[int | None] = [i for i, maker in enumerate(made_by) if maker == generator]
        draws = model.draws([children[i] for i in own if i is not None], rng)
        options += [(draw, i, generator) for draw, i in zip(draws, [*own, None], strict=True)]
    ranked = sorted(options, key=lambda option: -option[0])
    return next((i, maker) for _, i, maker in ranked if i is None or not settled(children[i]))
