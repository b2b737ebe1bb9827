"""Intervals: small cases by hand or by enumeration, and coverage on simulated problems."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tts_decode.select.statistics import (
    bootstrap_mean,
    geometric_mean_ratio,
    paired_difference,
    paired_proportion_difference,
    wilson_interval,
)


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


@pytest.mark.parametrize(
    ("both_wrong", "lost", "won", "both_right", "expected"),
    [
        # The example of ci.prop.ps in Bonett's own R package statpsych: 0.44, standard error 0.09448809.
        (12, 4, 26, 6, (22 / 48, 0.2548067, 0.6251933)),
        # Estimate and standard error 0.5784314 and 0.05953213 of se.prop.ps in the package vcmeta.
        (16, 5, 64, 15, (59 / 100, 0.5784314 - 1.959964 * 0.05953213, 0.5784314 + 1.959964 * 0.05953213)),
        # Eight problems and no disagreement: 1.959964 * sqrt(2 / 10 / 10).
        (3, 0, 0, 5, (0.0, -0.2771808, 0.2771808)),
        # One problem: 1/3 - 1.959964 * sqrt((1 - 1/9) / 3) = -0.7335359, and no more than 1.
        (0, 0, 1, 0, (1.0, -0.7335359, 1.0)),
    ],
)
def test_bonett_and_price(both_wrong, lost, won, both_right, expected):
    ours = [0] * both_wrong + [0] * lost + [1] * won + [1] * both_right
    theirs = [0] * both_wrong + [1] * lost + [0] * won + [1] * both_right
    assert paired_proportion_difference(ours, theirs) == pytest.approx(expected, abs=2e-7)
    turned = paired_proportion_difference(theirs, ours)
    assert (-turned.value, -turned.high, -turned.low) == pytest.approx(expected, abs=2e-7)


@pytest.mark.parametrize("count", [1, 2, 6, 30])
def test_agreement_on_every_problem_is_not_certainty(count):
    for outcome in (0, 1):
        value, low, high = paired_proportion_difference([outcome] * count, [outcome] * count)
        assert low < value == 0.0 < high
    widths = [paired_proportion_difference([1] * n, [1] * n).high for n in (count, 2 * count)]
    assert widths[1] < widths[0]


@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60), st.sampled_from([0.9, 0.99])
)
def test_the_estimate_lies_within_its_interval(pairs, confidence):
    value, low, high = paired_proportion_difference(*zip(*pairs, strict=True), confidence=confidence)
    assert -1 <= low <= value <= high <= 1
    assert low < high


def test_bonett_and_price_cover_the_truth():
    """Exact coverage over all outcomes of 4 and 12 problems: won, lost and same follow a trinomial."""
    for size, won, lost in itertools.product([4, 12], [0.02, 0.3], [0.02, 0.2]):
        inside = 0.0
        for w, t in itertools.product(range(size + 1), repeat=2):
            if w + t > size:
                continue
            ours, theirs = [1] * w + [0] * (size - w), [0] * w + [1] * t + [0] * (size - w - t)
            _, low, high = paired_proportion_difference(ours, theirs)
            if low <= won - lost <= high:
                ways = math.comb(size, w) * math.comb(size - w, t)
                inside += ways * won**w * lost**t * (1 - won - lost) ** (size - w - t)
        assert inside > 0.93


def test_student():
    """By hand: differences 1, 2, 6 of mean 3 and variance 7; the 97.5 % quantile of t at 2 degrees of freedom
    is 4.3026527."""
    half = 4.3026527 * math.sqrt(7 / 3)
    assert paired_difference([2, 4, 9], [1, 2, 3]) == pytest.approx((3, 3 - half, 3 + half), rel=1e-7)
    ratios = geometric_mean_ratio(np.exp([1, 2, 6]), [1, 1, 1])
    assert ratios == pytest.approx(tuple(map(math.exp, (3, 3 - half, 3 + half))), rel=1e-6)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ([5.0], [3.0]),
        ([3, 3], [3, 3]),
        ([0.3, 0.7], [0.2, 0.6]),
        ([2, 4, 6], [1, 3, 5]),
        ([64] * 9, [64] * 9),
    ],
)
def test_without_a_spread_no_interval_is_stated(ours, theirs):
    found = paired_difference(ours, theirs)
    assert found.value == pytest.approx(np.mean(ours) - np.mean(theirs))
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert found.to_dict() == {"value": found.value, "low": None, "high": None}
    doubled = geometric_mean_ratio(np.multiply(ours, 2.0), ours)
    assert doubled.value == pytest.approx(2.0)
    assert doubled.to_dict() == {"value": doubled.value, "low": None, "high": None}


def test_pairing_takes_out_what_problems_have_in_common():
    rng = np.random.default_rng(0)
    difficulty = rng.normal(size=60)
    found = paired_difference(difficulty + 0.1 + 0.01 * rng.normal(size=60), difficulty)
    assert found.low < 0.1 < found.high
    assert found.high - found.low < 0.01


@pytest.mark.parametrize("size", [3, 10, 60])
def test_student_covers_the_truth(size):
    """400 simulated experiments: 95 % intervals hold the truth in 91 % to 99 % of them, some four standard
    errors around 95 %. A percentile bootstrap of three problems holds it in less than 80 %."""
    rng = np.random.default_rng(2)
    inside = 0
    for _ in range(400):
        found = geometric_mean_ratio(np.exp(rng.normal(0.5, 0.4, size)), np.exp(rng.normal(0.0, 0.4, size)))
        inside += found.low <= math.exp(0.5) <= found.high
    assert 364 <= inside <= 396


def test_bootstrap_of_the_mean():
    """Of 400 normal numbers it is about the normal interval, mean -+ 1.96 s / 20; it leans to where a skewed
    sample has its tail; equal numbers tell nothing."""
    values = np.random.default_rng(3).normal(10, 2, 400)
    mean, low, high = bootstrap_mean(values.tolist())
    half = 1.96 * values.std(ddof=1) / 20
    assert mean == pytest.approx(values.mean())
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.1 * half)
    assert bootstrap_mean(values.tolist()) == (mean, low, high)
    mean, low, high = bootstrap_mean(np.exp(values / 2).tolist())
    assert high - mean > mean - low > 0
    for equal in ([5.0], [0.1] * 3, [0.0, 0.0]):
        assert bootstrap_mean(equal).value == pytest.approx(equal[0])
        assert math.isnan(bootstrap_mean(equal).low)


def test_wilson_counts_means_of_trials():
    """2.5 in 5 is centred on a half; wider than 25 in 50."""
    value, low, high = wilson_interval(2.5, 5)
    assert (value, low + high) == (0.5, pytest.approx(1))
    assert low < wilson_interval(25, 50).low


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wilson_interval(3, 2), "successes: got 3 of 2 trials"),
        (lambda: wilson_interval(0, 0), "successes: got 0 of 0 trials"),
        (lambda: wilson_interval(1, 2, 1.0), "confidence: got 1.0"),
        (lambda: bootstrap_mean([]), "values: got none, expected a number"),
        (lambda: bootstrap_mean([1, math.nan]), r"values\[1\]: got nan"),
        (lambda: bootstrap_mean([1, 2], 1.0), "confidence: got 1.0"),
        (lambda: paired_difference([1], [1, 2]), "ours: got 1 numbers beside 2 in theirs"),
        (lambda: paired_difference([], []), "at least one problem"),
        (lambda: paired_difference([math.nan], [1]), r"ours\[0\]: got nan"),
        (lambda: paired_difference([1, 2], [1, 1], confidence=0), "confidence: got 0"),
        (lambda: paired_proportion_difference([1, 0.5], [1, 0]), r"ours\[1\]: got 0.5, expected 0 or 1"),
        (lambda: paired_proportion_difference([1], [1], confidence=1), "confidence: got 1"),
        (lambda: geometric_mean_ratio([1, 0], [1, 1]), r"ours\[1\]: got 0.0"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
