"""Accuracy of rules over k of n samples, against subsets that are enumerated here in every order."""

from __future__ import annotations

import itertools
import math
import random
from fractions import Fraction

import pytest
from tts_decode.select import majority_at_k, naive_at_k, pass_at_k, weighted_at_k
from tts_decode.select.subsets import DRAWS, MOST_SAMPLES, MOST_SUBSETS


def enumerated(answers, weights, correct, k):
    """Over all ordered draws of k: the winner has most weight, ties go to the one drawn first, and the sample
    that stands for it is any of those in the draw that gave it, each as likely."""
    total, count = Fraction(0), 0
    for drawn in itertools.permutations(range(len(answers)), k):
        count += 1
        tally = {}
        for i in drawn:
            if answers[i] is not None:
                tally[answers[i]] = tally.get(answers[i], 0) + weights[i]
        if not tally:
            total += correct[drawn[0]]
            continue
        winner = next(answer for answer, weight in tally.items() if weight == max(tally.values()))
        backers = [i for i in drawn if answers[i] == winner]
        total += Fraction(sum(correct[i] for i in backers), len(backers))
    return float(total / count)


# Answers as letters, - abstains; those that are right; small whole weights, so that sums tie.
CASES = [
    ("a", "1", [1]),
    ("ab", "10", [1, 1]),
    ("aabbc", "11000", [1, 2, 1, 2, 3]),
    ("abcabc", "100100", [1, 1, 2, 2, 1, 1]),
    ("aab-c-", "110010", [0, 0, 0, 5, 0, 2]),
    ("---", "101", [1, 1, 1]),
    ("aabb", "1000", [2, 1, 1, 2]),  # right and wrong samples of one answer
    ("abcdef", "010000", [3, 3, 3, 1, 1, 1]),
]


@pytest.mark.parametrize(("letters", "right", "weights"), CASES)
def test_votes_are_those_of_all_subsets(letters, right, weights):
    answers = [None if letter == "-" else letter for letter in letters]
    correct = [mark == "1" for mark in right]
    for k in range(1, len(answers) + 1):
        found = majority_at_k(answers, correct, k)
        assert found == pytest.approx((enumerated(answers, [1] * len(answers), correct, k), 0.0))
        found = weighted_at_k(answers, weights, correct, k)
        assert found == pytest.approx((enumerated(answers, weights, correct, k), 0.0))


def test_the_best_scored_is_that_of_all_subsets():
    scores, correct = [2.0, None, 1.0, 2.0, 1.0, -3.0], [True, False, True, False, False, True]
    for k in range(1, 7):
        total, count = 0, 0
        for drawn in itertools.permutations(range(6), k):
            best = max(
                drawn, key=lambda i: -math.inf if scores[i] is None else scores[i]
            )  # the first of equals
            total, count = total + correct[best], count + 1
        assert naive_at_k(scores, correct, k).value == pytest.approx(total / count)


def test_by_hand():
    """Two right ones, and two different wrong ones. k = 2, of 6 pairs: both right in 1; one right in 4, a
    tie, won in half; none in 1. k = 3, of 4: two right in 2, won; one right and both wrong in 2, a tie of
    three. k = 4: two right votes against one and one."""
    values = [majority_at_k(["x", "x", "y", "z"], [True, True, False, False], k).value for k in (1, 2, 3, 4)]
    assert values == pytest.approx([1 / 2, (1 + 4 / 2) / 6, (2 + 2 / 3) / 4, 1])
    assert naive_at_k([0.1, 0.9, 0.5], [False, True, False], 2).value == pytest.approx(2 / 3)
    assert pass_at_k(4, 2, 2) == pytest.approx(5 / 6)


def test_one_sample_is_the_mean_and_all_are_the_vote():
    rng = random.Random(4)
    answers = [rng.choice("abcd") for _ in range(60)]
    correct = [answer == "b" for answer in answers]
    share = sum(correct) / 60
    assert majority_at_k(answers, correct, 1).value == pytest.approx(share)
    assert weighted_at_k(answers, [1.0] * 60, correct, 1).value == pytest.approx(share)
    most = max("abcd", key=answers.count)
    assert majority_at_k(answers, correct, 60).value == (most == "b")


def test_many_samples_are_counted_and_drawn_alike():
    """A vote by drawing, beside the exact count: within four standard errors, and the same for a seed."""
    answers = ["a"] * 30 + ["b"] * 25 + [f"c{i}" for i in range(45)]
    correct = [answer == "a" for answer in answers]
    assert math.comb(100, 16) > MOST_SUBSETS
    drawn = weighted_at_k(answers, [1.0] * 100, correct, 16)
    assert 0 < drawn.error < 0.5 / math.sqrt(DRAWS) * 1.01
    assert abs(drawn.value - majority_at_k(answers, correct, 16).value) < 4 * drawn.error
    assert drawn == weighted_at_k(answers, [1.0] * 100, correct, 16)
    assert drawn != weighted_at_k(answers, [1.0] * 100, correct, 16, seed=1)


def test_the_largest_counts_are_finite():
    answers = [i % 7 for i in range(MOST_SAMPLES)]
    found = majority_at_k(answers, [answer == 0 for answer in answers], MOST_SAMPLES // 2)
    assert 0 < found.value < 1


def test_rounding_breaks_no_tie():
    """0.1 + 0.2 against 0.3: the vote is even, though the floating-point sum is not."""
    found = weighted_at_k(["a", "a", "b"], [0.1, 0.2, 0.3], [False, False, True], 3)
    assert found.value == pytest.approx(1 / 3)  # the first drawn is b's in one of three


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: majority_at_k(["a"], [True], 2), "k: got 2, expected at most the 1 samples"),
        (lambda: majority_at_k(["a"], [], 1), "correct: got 0 for 1 samples, expected one each"),
        (lambda: majority_at_k(["a"] * 1001, [True] * 1001, 1), "answers: got 1001, expected at most 1000"),
        (lambda: naive_at_k([math.nan], [True], 1), "nan"),
        (lambda: weighted_at_k(["a"], [-1.0], [True], 1), "weights: got -1.0, expected no negative one"),
        (lambda: weighted_at_k(["a"], [], [True], 1), "weights: got 0 for 1 answers, expected one each"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
