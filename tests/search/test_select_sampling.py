"""Rules of strategies over whole answers, each against its authors' formula computed in another way."""

import math
import random
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from plain_selection import plain_b4, plain_kept
from scipy import integrate, stats
from tts_decode.select import (
    agreement,
    b4_scores,
    borda_weights,
    bracket,
    chain_of_embedding,
    consistency_weight,
    last_choice,
    majority_probability,
    match_winner,
    most_central,
    ngram_distances,
    probable_paths,
    squared_differences,
    wins_of,
    within,
)

# -- consistency


@pytest.mark.parametrize("counts", [[1], [4], [2, 1], [3, 3], [9, 2, 1], [30, 10]])
def test_beta_is_the_integral_of_the_top_two(counts):
    a, b = sorted([*counts, 0], reverse=True)[:2]

    def density(x):
        return x**a * (1 - x) ** b

    expected = integrate.quad(density, 0.5, 1)[0] / integrate.quad(density, 0, 1)[0]
    assert majority_probability(counts) == pytest.approx(expected, abs=1e-7)
    assert majority_probability(counts[::-1]) == majority_probability(counts)


def test_four_agreeing_answers_reach_the_default_threshold():
    assert majority_probability([3]) < 0.95 <= majority_probability([4])


@pytest.mark.parametrize("counts", [[3, 1, 1], [5, 4, 3, 2], [8, 1, 1, 1, 1, 1, 1]])
def test_dirichlet_is_how_often_the_first_share_is_the_largest(counts):
    shares = np.random.default_rng(1).dirichlet(np.array(counts) + 1, size=100_000)
    expected = (shares.argmax(1) == 0).mean()
    assert majority_probability(counts, "dirichlet") == pytest.approx(expected, abs=4 * 0.5 / 100_000**0.5)
    assert majority_probability(counts, "dirichlet") < majority_probability(counts, "beta")


def test_majority_probability_of_two_answers_is_the_same_by_both_criteria():
    assert majority_probability([7, 2], "dirichlet") == majority_probability([7, 2], "beta")
    assert majority_probability([]) == 0
    with pytest.raises(ValueError, match=r"counts: got \[1, -1\]"):
        majority_probability([1, -1])
    with pytest.raises(ValueError, match="criterion: got 'gamma'"):
        majority_probability([1, 1, 1], "gamma")


def test_agreement_is_the_share_of_the_first_answer():
    assert agreement(["a", "b", "a", None]) == 2 / 3
    assert agreement([None]) == 0


def test_consistency_weight_falls_from_one_to_one_over_the_number_of_answers():
    generator = random.Random(2)
    for _ in range(50):
        answers = generator.choices("abcd", k=generator.randint(1, 9))
        shares = np.array(list(Counter(answers).values())) / len(answers)
        uneven = 1 - stats.entropy(shares) / math.log(len(answers)) if len(shares) > 1 else 1
        expected = 1 / len(answers) + (1 - 1 / len(answers)) * uneven
        assert consistency_weight([*answers, None]) == pytest.approx(expected)
    assert consistency_weight(["a", "b", "c"]) == pytest.approx(1 / 3)
    assert consistency_weight(["a", "a", "b", "b"]) == pytest.approx(1 / 4 + 3 / 4 / 2)
    assert consistency_weight([]) == 1


def test_borda_weights_are_powers_of_the_rank_from_below():
    assert borda_weights([0.1, 0.9, 0.5], 2.0) == [1, 9, 4]
    assert borda_weights([0.5, 0.5], 1.0) == [2, 1]
    assert set(borda_weights([3.0, 1.0, 2.0], 0.0)) == {1}
    with pytest.raises(ValueError, match="power: got -1"):
        borda_weights([1.0], -1)


# -- Reasoning Pruning


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # densities, unlike their logarithms, overflow
@pytest.mark.parametrize("seed", range(6))
def test_probable_paths_are_those_of_the_authors_code(seed):
    generator = np.random.default_rng(seed)
    low, high = generator.beta(20, 60, size=14), generator.beta(60, 15, size=18)
    probabilities = generator.permutation(np.concatenate([low, high])).tolist()
    kept = probable_paths(probabilities)
    assert kept == plain_kept(probabilities)
    assert 0 < sum(kept) < 32
    assert all(keep for keep, p in zip(kept, probabilities, strict=True) if p >= np.mean(probabilities))


def test_paths_that_are_all_alike_are_kept():
    assert probable_paths([0.3] * 5) == [True] * 5
    assert probable_paths([0.3]) == [True]
    assert probable_paths([]) == []
    assert any(probable_paths([0.0, 0.0, 0.7]))
    with pytest.raises(ValueError, match=r"probabilities\[1\]: got 1.5"):
        probable_paths([0.5, 1.5])


# -- centrality


def test_the_most_central_number_has_the_smallest_mean_squared_distance():
    generator = np.random.default_rng(3)
    for _ in range(20):
        x = generator.normal(size=7)
        means = [
            np.mean([(x[i] - x[j]) ** 2 for j in range(7) if j != i]) for i in range(7)
        ]  # S_i of the paper
        assert most_central(squared_differences(list(x))) == int(np.argmin(means))


def test_a_chain_of_embedding_is_worked_out_by_hand():
    """Straight on by equal moves; a right angle in two halves; and there and back, whose way is longer."""
    straight = [[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]]
    turn = [[1.0, 0.0], [0.5**0.5, 0.5**0.5], [0.0, 1.0]]
    detour = [[1.0, 0.0], [0.0, 5.0], [0.0, 1.0]]
    half = 2 * np.sin(np.pi / 8) / 2**0.5 - 1 / 2
    away = (26**0.5 / 2**0.5 + 4 / 2**0.5 - 1) / 2
    found = chain_of_embedding([turn, detour])
    np.testing.assert_allclose(found, [half, away], atol=1e-3)  # the floor of an angle is 4.5e-4
    np.testing.assert_allclose(chain_of_embedding([straight]), [1 / 2 - 1], atol=1e-6)
    np.testing.assert_allclose(chain_of_embedding([[[0.0, 0.0]] * 3]), [-1.0])  # no move, the floors' ratio
    with pytest.raises(ValueError, match=r"states: got shape \[3, 1, 2\], expected \[N, K, D\]"):
        chain_of_embedding(np.zeros((3, 1, 2)))


def test_ngram_distances_are_one_less_the_jaccard_overlap():
    distances = ngram_distances([[1, 2, 3], [1, 2, 4], [1, 2, 3], [5]])
    assert distances[0, 1] == pytest.approx(1 - 1 / 3)
    assert distances[0, 2] == 0
    assert distances[0, 3] == 1
    assert (distances == distances.T).all()
    assert most_central(distances) == 0
    with pytest.raises(ValueError, match="n: got 0"):
        ngram_distances([[1]], 0)


@pytest.mark.parametrize(("distances", "message"), [(np.ones((2, 3)), "shape"), ([[math.nan]], "NaN")])
def test_bad_distances_are_refused(distances, message):
    with pytest.raises(ValueError, match=message):
        most_central(distances)


# -- tournaments


@pytest.mark.parametrize("n", [1, 2, 5, 8, 13])
def test_a_tournament_plays_all_but_one_match(n):
    survivors, matches, rounds = list(range(n)), 0, 0
    while len(survivors) > 1:
        pairs, rest = bracket(survivors)
        assert sorted([i for pair in pairs for i in pair] + rest) == sorted(survivors)
        survivors = rest + [max(pair) for pair in pairs]
        matches, rounds = matches + len(pairs), rounds + 1
    assert survivors == [n - 1]
    assert (matches, rounds) == (n - 1, math.ceil(math.log2(n)))


def test_a_match_goes_to_the_majority_and_a_draw_to_either():
    generator = random.Random(4)
    assert match_winner((3, 7), (2, 1), generator) == 3
    assert match_winner((3, 7), (0, 1), generator) == 7
    draws = Counter(match_winner((3, 7), (1, 1), generator) for _ in range(2000))
    assert stats.chisquare([draws[3], draws[7]]).pvalue > 1e-4


def test_within_keeps_scores_near_the_best():
    assert within([0.95, 1.0, 0.9], 0.05) == [0, 1]
    assert within([0.2, 0.4, 0.4], 0.0) == [1, 2]
    with pytest.raises(ValueError, match="scores: got nothing"):
        within([], 0.1)


def test_wins_of_a_round_robin():
    pairs = list(combinations(range(3), 2))
    assert wins_of(3, pairs, [(2, 1), (1, 1), (0, 3)]) == [1.5, 0.0, 1.5]


# -- choices


@pytest.mark.parametrize(
    ("text", "choices", "expected"),
    [
        ("It seems correct, but no: Wrong.", ("correct", "wrong"), "wrong"),
        ("This is incorrect.", ("correct", "wrong"), None),
        ("A is worse than B. Better: A", ("A", "B"), "A"),
        ("a better B-side", ("A", "B"), "B"),
        ("a tie", ("A", "B"), None),
    ],
)
def test_the_last_choice_counts(text, choices, expected):
    assert last_choice(text, choices) == expected


# -- B4


@pytest.mark.parametrize("seed", range(5))
def test_b4_scores_are_the_papers_posterior(seed):
    generator = np.random.default_rng(seed)
    kinds = generator.random((3, 7)) < 0.6
    passed = kinds[generator.integers(3, size=10)] | (generator.random((10, 7)) < 0.05)
    expected = plain_b4(passed, 1e4, 50.0)
    assert b4_scores(passed.tolist(), 1e4, 50.0) == pytest.approx(expected, abs=1e-6)


def test_b4_prefers_a_large_consensus_on_many_tests():
    passed = [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]]
    scores = b4_scores(passed)
    assert scores[0] == scores[1] == scores[2] == max(scores)
    assert min(scores) < max(scores)
    assert b4_scores([]) == []
    with pytest.raises(ValueError, match=r"rows of lengths \[1, 2\]"):
        b4_scores([[1], [1, 0]])
    with pytest.raises(ValueError, match="beta_0: got 0"):
        b4_scores([], beta_0=0)
