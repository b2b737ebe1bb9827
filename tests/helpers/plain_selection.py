"""Formulas of B4 and of RPC's pruning, computed in a different way from the selection rules."""

import numpy as np
from scipy import optimize, special, stats


def plain_b4(passed, beta_0, alpha_xy):
    """Log-posterior of each row's consensus set by the four beta integrals of the paper, on arrays."""
    passed, scores = np.array(passed, int), []
    for row in passed:
        x, y = (passed == row).all(1), row == 1
        e1, e0 = passed[~x][:, y], passed[~x][:, ~y]
        scores.append(
            special.betaln(y.sum() + alpha_xy, (~y).sum() + 1)
            + special.betaln(x.sum() + alpha_xy, (~x).sum() + 1)
            + special.betaln(e1.sum() + 1, e1.size - e1.sum() + 1)
            + special.betaln(e0.sum() + 1, e0.size - e0.sum() + beta_0)
        )
    return scores


def plain_kept(probabilities):
    """The procedure of the authors' code: fit on densities, larger mean first, drop below the average."""
    x = np.array(probabilities)

    def density(shape, scale, x=x):
        return stats.weibull_min.pdf(x, shape, scale=scale)

    def cost(p):
        return -np.log(p[0] * density(p[1], p[2]) + (1 - p[0]) * density(p[3], p[4])).sum()

    bounds = [(0.2, 0.8)] + [(0.01, None)] * 4
    w, k1, s1, k2, s2 = optimize.minimize(cost, [0.5, 1.0, 1.0, 1.5, 2.0], bounds=bounds).x
    if s1 * special.gamma(1 + 1 / k1) < s2 * special.gamma(1 + 1 / k2):
        w, k1, s1, k2, s2 = 1 - w, k2, s2, k1, s1
    member = w * density(k1, s1) / (w * density(k1, s1) + (1 - w) * density(k2, s2))
    return [not (p < 0.5 and v < x.mean()) for p, v in zip(member, x, strict=True)]
