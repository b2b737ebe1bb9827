"""B4: which solutions to trust, given which of them pass which plausible tests."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tts_kernels.checks import number


def b4_scores(passed: Sequence[Sequence[bool]], beta_0: float = 1e5, alpha_xy: float = 1e3) -> list[float]:
    """Returns the log-posterior, up to a constant, of each of N solutions and those that pass the same tests.

    Chen et al., "B4: Towards Optimal Assessment of Plausible Code Solutions with Plausible Tests", arXiv
    2409.08692, section 4. The hypothesis of a solution: it is right, with all solutions that pass exactly the
    same tests, and the tests that they pass are right too. Its posterior has four factors with beta priors:
    the shares of right solutions and of right tests (`alpha_xy`: many are right), the chance that a wrong
    solution passes a right test (flat), and a wrong test (`beta_0`: hardly ever).

    Args:
        passed: `[N][M]`, whether solution n passes test m.
        beta_0, alpha_xy: of the priors; the authors' code uses 1e3, and the middle one of 1e4, 1e5, 1e6.
    """
    rows = [tuple(bool(value) for value in row) for row in passed]
    if len({len(row) for row in rows}) > 1:
        raise ValueError(f"passed: got rows of lengths {[len(row) for row in rows]}, expected equal lengths")
    for name, value in (("beta_0", beta_0), ("alpha_xy", alpha_xy)):
        number(name, value, above=0)
    posterior: dict[tuple[bool, ...], float] = {}
    for row in dict.fromkeys(rows):
        wrong = [other for other in rows if other != row]
        right_tests, right_solutions = sum(row), len(rows) - len(wrong)
        on_right = sum(value for other in wrong for value, right in zip(other, row, strict=True) if right)
        on_wrong = sum(map(sum, wrong)) - on_right
        cells = len(wrong) * right_tests
        posterior[row] = (
            _log_beta(right_tests + alpha_xy, len(row) - right_tests + 1)
            + _log_beta(right_solutions + alpha_xy, len(wrong) + 1)
            + _log_beta(on_right + 1, cells - on_right + 1)
            + _log_beta(on_wrong + 1, len(wrong) * len(row) - cells - on_wrong + beta_0)
        )
    return [posterior[row] for row in rows]


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
