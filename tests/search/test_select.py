"""Selection rules: ranking, allocation, votes, answers, clusters."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from published_walk import published_counts
from tts_decode.select import (
    aggregate,
    allocate,
    cluster,
    extract_answer,
    rebase_weights,
    top_k,
    vote,
    walk_ceilings,
)

scores = st.lists(st.floats(-3, 3), min_size=1, max_size=40)


@given(scores, st.integers(1, 50))
def test_top_k_is_the_head_of_a_stable_sort(values, k):
    expected = [i for _, i in sorted((-v, i) for i, v in enumerate(values))][:k]
    assert top_k(values, k) == expected


def test_aggregate():
    steps = [0.5, 0.25, 1.0]
    assert aggregate(steps) == 1.0
    assert aggregate(steps, "min") == 0.25
    assert aggregate(steps, "prod") == 0.125
    assert aggregate(steps, "mean") == pytest.approx(1.75 / 3)


@given(scores, st.sampled_from([0.05, 0.2, 1.0]))
def test_rebase_weights_are_the_softmax(values, temperature):
    shifted = np.exp((np.array(values) - max(values)) / temperature)
    np.testing.assert_allclose(rebase_weights(values, temperature), shifted / shifted.sum(), rtol=1e-12)


@given(st.integers(0, 300), st.lists(st.floats(0, 1e6), min_size=1, max_size=40).filter(any))
def test_allocation_sums_to_the_width_and_stays_within_one_of_the_quota(width, weights):
    counts = allocate(width, weights)
    assert sum(counts) == width
    total = sum(Fraction(w) for w in weights)
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count - width * Fraction(weight) / total) < 1
        assert weight > 0 or count == 0


@given(st.integers(0, 300), st.lists(st.floats(0, 1), min_size=1, max_size=40).filter(any))
def test_a_larger_weight_never_gets_less(width, weights):
    counts = allocate(width, weights)
    for count, weight in zip(counts, weights, strict=True):
        assert all(count >= c for c, w in zip(counts, weights, strict=True) if w < weight)


@pytest.mark.parametrize("n", [1, 3, 16, 64, 100])
def test_equal_scores_share_the_width_evenly(n):
    """Float residue makes the published walk give one node two and starve the last."""
    for rule in (allocate, walk_ceilings):
        assert rule(n, rebase_weights([0.3] * n)) == [1] * n
        assert rule(n + 1, rebase_weights([0.3] * n)) == [2] + [1] * (n - 1)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.70, 0.68, 0.66, 0.64, 0.62, 0.60, 0.58, 0.56], [2, 2, 1, 1, 1, 1, 0, 0]),
        ([0.9, 0.8, 0.7, 0.6], [2, 2, 0, 0]),
        ([0.6, 0.9, 0.7, 0.8], [0, 2, 0, 2]),
    ],
)
def test_the_walk_of_ceilings_starves_the_tail_as_the_published_code_does(scores, expected):
    assert walk_ceilings(len(scores), rebase_weights(scores)) == expected
    assert allocate(len(scores), rebase_weights(scores)) != expected


@given(
    st.integers(0, 300),
    st.lists(st.integers(0, 1000), min_size=1, max_size=40),
    st.sampled_from([0.1, 0.2, 1.0]),
)
def test_the_walk_of_ceilings_equals_its_transcription(width, thousandths, temperature):
    scores = [value / 1000 for value in thousandths]
    counts = walk_ceilings(width, rebase_weights(scores, temperature))
    assert sum(counts) == width
    assert counts == published_counts(width, scores, temperature)


def test_the_walk_leaves_out_weights_of_zero():
    assert walk_ceilings(5, [0.0, 1.0, 0.0, 1.0]) == [0, 3, 0, 2]


def test_vote_counts_weights_and_abstentions():
    assert vote(["4", None, "5", "5", "4", "6"]) == {"4": 2, "5": 2, "6": 1}
    assert next(iter(vote(["4", None, "5", "5", "4", "6"]))) == "4"  # the tie goes to the answer seen first
    assert list(vote(["4", "5"], [0.25, 0.5]).items()) == [("5", 0.5), ("4", 0.25)]
    assert vote([None, None]) == {}


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"So \boxed{3} or \boxed{\frac{1}{2}} it is 7", r"\frac{1}{2}"),
        ("5 apples. The answer is 12.\n", "12"),
        ("The answer is: **1,234**", "1234"),
        ("The final answer is $x + 1$.", "x + 1"),
        ("answer is 3\nno: the answer is 4 ", "4"),
        ("2 + 2 = 4, then 4 - 6.5 = -2.5.", "-2.5"),
        ("  true  ", "true"),
        (r"cut off \boxed{12", "12"),
        ("", ""),
    ],
)
def test_extract_answer(text, answer):
    assert extract_answer(text) == answer


def test_cluster_separates_directions_and_ignores_length():
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.normal(size=(8, 8)))[0][:3]
    labels = [0, 1, 0, 2, 1, 1, 0]
    rows = directions[labels] * rng.uniform(0.1, 10, (7, 1)) + rng.normal(scale=1e-3, size=(7, 8))
    assert cluster(rows) == labels
    assert cluster(rows, threshold=2.1) == [0] * 7
    assert cluster(rows[:1]) == [0]


def test_cluster_takes_the_mean_distance_between_groups():
    """Average linkage: 0 and 20 degrees join, and 45 joins them only above the mean of the two distances."""
    angles = np.deg2rad([0, 20, 45])
    rows = np.stack([np.cos(angles), np.sin(angles)], 1)
    between = np.mean([1 - math.cos(angles[2]), 1 - math.cos(angles[2] - angles[1])])
    assert cluster(rows, between - 0.01) == [0, 0, 1]
    assert cluster(rows, between + 0.01) == [0, 0, 0]


def test_cluster_puts_a_zero_row_by_itself():
    assert cluster([[0.0, 0.0], [1.0, 0.0], [1.0, 0.01], [0.0, 0.0]]) == [0, 1, 1, 2]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: top_k([0.5], 0), "k: got 0"),
        (lambda: top_k([0.5, math.nan], 1), r"scores\[1\]: got nan"),
        (lambda: aggregate([1.0], "mode"), "agg_strategy: got 'mode'"),
        (lambda: aggregate([1.0], "window:0"), "agg_strategy: got 'window:0'"),
        (lambda: aggregate([]), "scores: got nothing"),
        (lambda: rebase_weights([0.5], 0), "softmax_temperature: got 0"),
        (lambda: rebase_weights([0.5], math.nan), "softmax_temperature: got nan"),
        (lambda: rebase_weights([]), "scores: got nothing"),
        (lambda: rebase_weights([math.inf]), r"scores\[0\]: got inf"),
        (lambda: allocate(-1, [1.0]), "width: got -1"),
        (lambda: walk_ceilings(-1, [1.0]), "width: got -1"),
        (lambda: walk_ceilings(2, [0.0]), "at least one positive"),
        (lambda: allocate(2, [0.0, 0.0]), "at least one positive"),
        (lambda: allocate(2, [1.0, -1.0]), "no negative"),
        (lambda: vote(["a"], [1.0, 2.0]), "1 answers"),
        (lambda: vote(["a"], [-1.0]), "no negative"),
        (lambda: cluster([]), "expected \\[N, D\\]"),
        (lambda: cluster([[math.nan, 1.0]]), r"embeddings\[0\]"),
        (lambda: cluster([[1.0], [2.0]], threshold=-1), "threshold: got -1"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
