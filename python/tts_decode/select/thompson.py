"""Thompson sampling: draws the value of each option from its posterior and takes the best draw."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from .scores import require_finite

P = TypeVar("P", bound="Posterior")


class Posterior(Protocol):
    def given(self: P, scores: Sequence[float]) -> P:
        """Returns the posterior after these scores, with this one as the prior."""

    def draw(self, rng: random.Random) -> float:
        """Draws a mean score."""


@dataclass(frozen=True)
class Gaussian:
    """Mean and variance of normal scores, with a normal-inverse-chi-squared prior.

    The defaults are those of AB-MCTS-A (Inoue et al., arXiv 2503.04412, as in treequest).

    Attributes:
        m, kappa: prior mean, and how many scores it is worth.
        nu, tau_square: degrees of freedom and scale of the prior variance.
    """

    m: float = 0.0
    kappa: float = 1.0
    nu: float = 1.0
    tau_square: float = 0.1

    def given(self, scores: Sequence[float]) -> Gaussian:
        require_finite("scores", scores)
        n = len(scores)
        if not n:
            return self
        mean = math.fsum(scores) / n
        squares = math.fsum((score - mean) ** 2 for score in scores)
        kappa, nu = self.kappa + n, self.nu + n
        shift = n * self.kappa * (self.m - mean) ** 2 / kappa
        return Gaussian(
            (self.kappa * self.m + n * mean) / kappa,
            kappa,
            nu,
            (self.nu * self.tau_square + squares + shift) / nu,
        )

    def draw(self, rng: random.Random) -> float:
        chi_square = 2 * rng.gammavariate(self.nu / 2, 1.0)
        variance = self.nu * self.tau_square / max(chi_square, sys.float_info.min)
        return rng.gauss(self.m, math.sqrt(variance / self.kappa))


@dataclass(frozen=True)
class Beta:
    """Chance of success for scores in [0, 1], where a score is a fractional success.

    Default: Jeffreys' prior, as in AB-MCTS-A.
    """

    a: float = 0.5
    b: float = 0.5

    def given(self, scores: Sequence[float]) -> Beta:
        require_finite("scores", scores)
        for score in scores:
            if not 0 <= score <= 1:
                raise ValueError(f"scores: got {score}, expected scores in [0, 1] for a beta posterior")
        total = math.fsum(scores)
        return Beta(self.a + total, self.b + len(scores) - total)

    def draw(self, rng: random.Random) -> float:
        return rng.betavariate(self.a, self.b)


def thompson(posteriors: Sequence[Posterior], rng: random.Random) -> int:
    """Returns the index of the best of one draw from each posterior, drawn in order."""
    draws = [posterior.draw(rng) for posterior in posteriors]
    return max(range(len(draws)), key=draws.__getitem__)


def generate_or_continue(
    children: Sequence[Sequence[float]], prior: Posterior, rng: random.Random
) -> int | None:
    """Returns the choice of AB-MCTS-A at a node: None for a new child, or the index of a child to continue.

    It makes two Thompson draws: between GEN, which has seen the scores of the children when they were
    generated, and CONT, which has seen all scores below them; then, for CONT, between the children, each of
    which has seen its own score and those below it.

    Args:
        children: for each, its own score first, then those below it.
    """
    generated = [scores[0] for scores in children]
    below = [score for scores in children for score in scores[1:]]
    first = thompson([prior.given(generated), prior.given(below)], rng)
    if first == 0 or not children:
        return None
    return thompson([prior.given(scores) for scores in children], rng)
