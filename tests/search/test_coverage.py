"""Repeated sampling, and the unbiased estimate of its coverage."""

import itertools
import math
from fractions import Fraction

import pytest
from answer_sampler import Sampler, sampled, tally
from hypothesis import given
from hypothesis import strategies as st
from plain_scripts import answer_of, draw
from scripted import scorer
from tts_decode import search
from tts_decode.select import coverage_curve, coverage_fit, pass_at_k


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_counts_the_subsets_that_hold_a_correct_sample(n):
    for correct in range(n + 1):
        samples = [True] * correct + [False] * (n - correct)
        for k in range(1, n + 1):
            subsets = list(itertools.combinations(samples, k))
            expected = Fraction(sum(map(any, subsets)), len(subsets))
            assert pass_at_k(n, correct, k) == pytest.approx(float(expected), abs=1e-15)


@given(st.integers(1, 10_000), st.data())
def test_pass_at_k_is_exact_for_many_samples(n, data):
    correct, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    missed = Fraction(math.comb(n - correct, k), math.comb(n, k))
    assert pass_at_k(n, correct, k) == pytest.approx(float(1 - missed), abs=1e-11)


def test_the_curve_is_the_mean_over_problems():
    counts = [(4, 1), (6, 0), (5, 5)]
    assert coverage_curve(counts, [1, 2, 4]) == pytest.approx(
        [(1 / 4 + 0 + 1) / 3, (1 / 2 + 0 + 1) / 3, (1 + 0 + 1) / 3]
    )


def test_the_fit_finds_the_law_that_made_the_points():
    ks = [1, 2, 5, 10, 100]
    a, b = coverage_fit(ks, [math.exp(-1.7 * k**-0.4) for k in ks])
    assert (a, b) == (pytest.approx(-1.7), pytest.approx(-0.4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pass_at_k(4, 5, 1), "correct: got 5, expected at most n = 4"),
        (lambda: pass_at_k(4, 1, 5), "k: got 5, expected at most n = 4"),
        (lambda: coverage_curve([], [1]), "counts: got no problem"),
        (lambda: coverage_fit([1, 2], [0.5, 1.0]), r"coverage\[1\]: got 1.0"),
        (lambda: coverage_fit([2, 2], [0.5, 0.5]), "ks: got"),
    ],
)
def test_wrong_numbers_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("wave", [1, 4])
def test_sampling_ends_with_the_wave_in_which_an_answer_passes(seed, wave):
    texts = Sampler(seed).texts(20)
    passing = [k for k, text in enumerate(texts) if draw(text) >= 0.8]
    first = passing[0] if passing else None
    result = sampled(
        Sampler(seed),
        search.repeated_sampling,
        max_samples=20,
        parallel=wave,
        threshold=0.8,
        scorer=scorer(draw),
    )
    expected = 20 if first is None else min(20, (first // wave + 1) * wave)
    assert [c.text for c in result.candidates] == texts[:expected]
    assert result.answer == (max(texts, key=draw) if first is None else texts[first])


def test_without_a_verifier_all_samples_vote():
    texts = Sampler(2).texts(9)
    result = sampled(Sampler(2), search.repeated_sampling, max_samples=9, extract=answer_of)
    assert result.votes == tally(map(answer_of, texts))
