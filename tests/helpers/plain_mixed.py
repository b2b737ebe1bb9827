"""A transcription of the mixed model of AB-MCTS-M: dense Gaussian algebra on the grid that its docstring
names, with the draws in the same order."""

import math

import numpy as np


def plain_draws(groups, rng, new):
    """As `MixedModel().draws`. The state is (mu, a of each group); scores read one a each, with noise."""
    scores = np.array([score for group in groups for score in group])
    reads = [j for j, group in enumerate(groups) for _ in group]
    size = 1 + len(groups)
    h = np.zeros((len(scores), size))
    h[range(len(scores)), [1 + j for j in reads]] = 1
    ratio = [(4.5 * scale / 0.01) ** (1 / 47) for scale in (0.2, 0.3)]
    points = [(0.01 * ratio[0] ** i, 0.01 * ratio[1] ** k) for i in range(48) for k in range(48)]
    logs = []
    for a, y in points:
        log = -(a**2) / (2 * 0.2**2) - y**2 / (2 * 0.3**2) + math.log(a) + math.log(y)
        if len(scores):
            cov = h @ prior_cov(size, a) @ h.T + y**2 * np.eye(len(scores))
            _, determinant = np.linalg.slogdet(cov)
            gap = scores - 0.5
            log += -determinant / 2 - gap @ np.linalg.solve(cov, gap) / 2
        logs.append(log)
    weights = np.exp(np.array(logs) - max(logs))
    cumulative = np.cumsum(weights) / weights.sum()
    drawn = []
    for j in [*range(len(groups)), *[None] * new]:
        u = rng.random()
        a, y = points[min(int((cumulative <= u).sum()), len(points) - 1)]
        mean, cov = np.full(size, 0.5), prior_cov(size, a)
        if len(scores):
            gain = cov @ h.T @ np.linalg.inv(h @ cov @ h.T + y**2 * np.eye(len(scores)))
            mean, cov = mean + gain @ (scores - 0.5), cov - gain @ h @ cov
        mu = rng.gauss(mean[0], math.sqrt(cov[0, 0]))
        if j is None:
            level = rng.gauss(mu, a)
        else:  # of the group's a, given mu as well
            slope = cov[1 + j, 0] / cov[0, 0]
            left = cov[1 + j, 1 + j] - slope * cov[0, 1 + j]
            level = rng.gauss(mean[1 + j] + slope * (mu - mean[0]), math.sqrt(max(left, 0.0)))
        drawn.append(rng.gauss(level, y))
    return drawn


def prior_cov(size, a):
    """Of (mu, a_1, ...): mu has variance 0.04, each a is mu and a^2 more."""
    return np.full((size, size), 0.04) + a**2 * np.diag([0.0] + [1.0] * (size - 1))
