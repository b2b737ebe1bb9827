"""Intervals: small cases by hand or by enumeration, and coverage on simulated problems."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tts_decode.select.statistics import geometric_mean_ratio, paired_difference, wilson_interval


@given(st.integers(1, 400), st.floats(0, 1), st.sampled_from([0.5, 0.9, 0.95]))
def test_wilson_ends_solve_the_score_equation(trials, share, confidence):
    """At either end p, the share seen is z standard errors away: (share - p)^2 = z^2 p (1 - p) / trials."""
    successes = round(share * trials)
    value, low, high = wilson_interval(successes, trials, confidence)
    z = {0.5: 0.6744897501960817, 0.9: 1.6448536269514722, 0.95: 1.959963984540054}[confidence]
    assert value == successes / trials
    assert 0 <= low <= value + 1e-12
    assert value - 1e-12 <= high <= 1
    for end in (low, high):
        assert (value - end) ** 2 == pytest.approx(z * z * end * (1 - end) / trials, abs=1e-12)


def test_wilson_covers_the_share():
    """Exact coverage by summing the binomial distribution: never far below the confidence asked for."""
    for trials, share in itertools.product([10, 40, 100], [0.05, 0.2, 0.5, 0.9]):
        inside = 0.0
        for successes in range(trials + 1):
            _, low, high = wilson_interval(successes, trials)
            if low <= share <= high:
                inside += (
                    math.comb(trials, successes) * share**successes * (1 - share) ** (trials - successes)
                )
        assert inside > 0.91


def test_bootstrap_follows_the_distribution_of_all_resamples():
    """Three problems: all 27 resamples are enumerated."""
    ours, theirs = [1.0, 0.0, 0.25], [0.0, 0.0, 0.5]
    differences = [1.0, 0.0, -0.25]
    means = sorted(sum(draw) / 3 for draw in itertools.product(differences, repeat=3))
    found = paired_difference(ours, theirs, confidence=0.8, rounds=50_000)
    assert found.value == pytest.approx(0.25)
    assert found.low == pytest.approx(means[2])  # 2/27 < 10 % < 3/27
    assert found.high == pytest.approx(means[24])


def test_agreement_on_every_problem_has_no_width():
    assert paired_difference([1, 0, 1], [1, 0, 1]) == (0.0, 0.0, 0.0)
    assert geometric_mean_ratio([2, 4, 6], [1, 2, 3]) == pytest.approx((2.0, 2.0, 2.0))


def test_pairing_takes_out_what_problems_have_in_common():
    rng = np.random.default_rng(0)
    difficulty = rng.normal(size=60)
    found = paired_difference(difficulty + 0.1 + 0.01 * rng.normal(size=60), difficulty)
    assert found.low < 0.1 < found.high
    assert found.high - found.low < 0.01


def test_same_seed_same_interval():
    rng = np.random.default_rng(1)
    ours, theirs = rng.random(30), rng.random(30)
    assert paired_difference(ours, theirs, seed=3) == paired_difference(ours, theirs, seed=3)
    assert paired_difference(ours, theirs, seed=3) != paired_difference(ours, theirs, seed=4)


@pytest.mark.parametrize("ratio", [False, True])
def test_bootstrap_covers_the_truth(ratio):
    """300 simulated experiments of 60 problems: 95 % intervals hold the truth in 90 % to 99 % of them, some
    five standard errors around what a percentile bootstrap reaches at this size, 94 %."""
    rng = np.random.default_rng(2)
    inside = 0
    for _ in range(300):
        if ratio:
            found = geometric_mean_ratio(
                np.exp(rng.normal(0.5, 0.4, 60)), np.exp(rng.normal(0.0, 0.4, 60)), rounds=500
            )
            inside += found.low <= math.exp(0.5) <= found.high
        else:
            hard = rng.random(60)  # the same problems, solved by chance of their own
            ours, theirs = rng.random(60) < 0.2 + 0.6 * hard, rng.random(60) < 0.1 + 0.6 * hard
            found = paired_difference(ours.astype(float), theirs.astype(float), rounds=500)
            inside += found.low <= 0.1 <= found.high
    assert 270 <= inside <= 297


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wilson_interval(3, 2), "successes=3 of trials=2"),
        (lambda: wilson_interval(0, 0), "trials=0"),
        (lambda: wilson_interval(1, 2, 1.0), "confidence=1.0"),
        (lambda: paired_difference([1], [1, 2]), "1 numbers in ours and 2"),
        (lambda: paired_difference([], []), "at least one problem"),
        (lambda: paired_difference([math.nan], [1]), r"ours\[0\] is nan"),
        (lambda: paired_difference([1], [1], rounds=0), "rounds=0"),
        (lambda: geometric_mean_ratio([1, 0], [1, 1]), r"ours\[1\] is 0.0"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
