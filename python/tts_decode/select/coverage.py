"""Coverage of repeated sampling: the share of problems that at least one of k samples solves."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tts_kernels.checks import integer


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Returns the probability that k of `n` samples, drawn without replacement, include a correct one.

    It is 1 - C(n - c, k) / C(n, k) with c = `correct`, the unbiased estimate of this probability for k fresh
    samples, for k <= n: Chen et al., arXiv 2107.03374, section 2.1.
    """
    integer("n", n, 1)
    integer("k", k, 1)
    integer("correct", correct, 0)
    if correct > n or k > n:
        name, value = ("correct", correct) if correct > n else ("k", k)
        raise ValueError(f"{name}: got {value}, expected at most n = {n}")
    missed = 1.0  # each factor: the next draw is wrong, too
    for drawn in range(k):
        missed *= max(0, n - correct - drawn) / (n - drawn)
    return 1.0 - missed


def coverage_curve(counts: Sequence[tuple[int, int]], ks: Sequence[int]) -> list[float]:
    """Returns the coverage at each k: the mean of `pass_at_k` over the problems.

    Brown et al., arXiv 2407.21787, section 2.

    Args:
        counts: (samples, correct ones) of each problem.
    """
    if not counts:
        raise ValueError("counts: got no problem, expected at least one")
    return [math.fsum(pass_at_k(n, correct, k) for n, correct in counts) / len(counts) for k in ks]


def coverage_fit(ks: Sequence[int], coverage: Sequence[float]) -> tuple[float, float]:
    """Returns (a, b) of the law coverage = exp(a * k ** b), fitted by least squares.

    The fit is linear, of log(-log(coverage)) over log(k). The law is from Brown et al., arXiv 2407.21787,
    section 3.1, where a nonlinear fit finds its constants.

    Args:
        coverage: strictly between 0 and 1, at two different k or more.
    """
    if len(ks) != len(coverage) or len(set(ks)) < 2:
        raise ValueError(
            f"ks: got {list(ks)} for {len(coverage)} shares, expected one each, and two different ones"
        )
    for i, share in enumerate(coverage):
        if not 0 < share < 1:
            raise ValueError(f"coverage[{i}]: got {share}, expected a share between 0 and 1, without both")
    x = [math.log(k) for k in ks]
    y = [math.log(-math.log(share)) for share in coverage]
    mean_x, mean_y = math.fsum(x) / len(x), math.fsum(y) / len(y)
    across = math.fsum((p - mean_x) * (q - mean_y) for p, q in zip(x, y, strict=True))
    slope = across / math.fsum((p - mean_x) ** 2 for p in x)
    return -math.exp(mean_y - slope * mean_x), slope
