"""Selection rules that draw, against their laws; acceptance, difficulty and hyper-nodes against definitions.

Statistical tests use fixed seeds; a right rule fails one with probability 1e-4 at most when the seed changes.
"""

import itertools
import math
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from tts_decode.select import (
    acceptance,
    annealed_temperature,
    difficulty_bin,
    difficulty_edges,
    effective_sample_size,
    hyper_nodes,
    logit,
    multinomial,
    particle_weights,
    sample_top_k,
    systematic,
    top_k,
)

some_weights = st.lists(st.floats(0, 10), min_size=1, max_size=20).filter(lambda w: sum(w) > 1e-3)
probabilities = st.lists(st.floats(0, 1), min_size=1, max_size=20)


class Fixed(random.Random):
    """A generator whose next uniform number is known."""

    def __init__(self, value):
        super().__init__(0)
        self.value = value

    def random(self):
        return self.value


def same_law(counts, expected):
    """Chi-square of the counts of categories against their probabilities."""
    total = sum(counts.values())
    assert set(counts) <= set(expected)
    observed = [counts[category] for category in expected]
    return chisquare(observed, [total * p for p in expected.values()]).pvalue > 1e-4


# -- particle weights


@given(probabilities, st.sampled_from([0.2, 1.0, 3.0]))
def test_particle_weights_are_powers_of_the_odds(scores, temperature):
    clipped = np.clip(scores, 1e-7, 1 - 1e-7)
    odds = (clipped / (1 - clipped)) ** (1 / temperature)
    np.testing.assert_allclose(particle_weights(scores, temperature), odds / odds.sum(), rtol=1e-6)


@given(st.floats(0.001, 0.999))
def test_logit_undoes_the_sigmoid(p):
    """Of a probability as well as of its logarithm."""
    assert 1 / (1 + math.exp(-logit(p))) == pytest.approx(p)
    assert logit(math.log(p)) == pytest.approx(logit(p))


@pytest.mark.parametrize("score", [1.01, 7.0, math.nan])
def test_weights_need_probabilities(score):
    with pytest.raises(ValueError, match="expected a probability or a log-probability, at most 1"):
        particle_weights([0.5, score])


@given(some_weights)
def test_effective_sample_size(weights):
    w = np.array(weights) / np.sum(weights)
    assert effective_sample_size(weights) == pytest.approx(1 / (w**2).sum())


@given(some_weights, st.floats(0, 0.999))
def test_annealing_acts_early_and_on_few_effective_particles(weights, progress):
    share = effective_sample_size(weights) / len(weights)
    temperature = annealed_temperature(weights, progress, ess_threshold=0.6, early_phase=0.5)
    if len(weights) > 1 and share < 0.6 and progress < 0.5:
        assert temperature == pytest.approx(max(1.0, (1 - progress) / share))
    else:
        assert temperature == 1.0


# -- resampling


@given(some_weights, st.integers(1, 60), st.floats(0, 1, exclude_max=True))
def test_systematic_counts_are_within_one_of_the_quota(weights, n, u):
    drawn = systematic(weights, n, Fixed(u))
    assert drawn == sorted(drawn)
    assert len(drawn) == n
    counts, total = Counter(drawn), math.fsum(weights)
    for i, w in enumerate(weights):
        assert abs(counts[i] - n * w / total) < 1 + 1e-9
        assert w > 0 or counts[i] == 0


@given(some_weights, st.integers(1, 12))
def test_systematic_counts_average_to_the_quota(weights, n):
    """Over an even grid of its one uniform number, up to what the grid leaves out."""
    grid = 100
    counts = Counter()
    for i in range(grid):
        counts.update(systematic(weights, n, Fixed((i + 0.5) / grid)))
    total = math.fsum(weights)
    for i, w in enumerate(weights):
        assert counts[i] / grid == pytest.approx(n * w / total, abs=2 / grid + 1e-9)


def test_multinomial_draws_independently():
    weights = [0.1, 0.0, 0.5, 0.4]
    rng = random.Random(3)
    pairs = Counter(tuple(multinomial(weights, 2, rng)) for _ in range(20_000))
    law = {
        (i, j): weights[i] * weights[j]
        for i, j in itertools.product(range(4), repeat=2)
        if weights[i] * weights[j]
    }
    assert same_law(pairs, law)


@pytest.mark.parametrize("rule", [multinomial, systematic])
@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, -0.5], [math.nan, 1.0]])
def test_weights_that_are_none_are_refused(rule, weights):
    with pytest.raises(ValueError, match="weights"):
        rule(weights, 3, random.Random(0))


# -- draws without replacement


def successive(weights, k):
    """Law of k successive draws, each in proportion to the weights of those left."""
    law = {}
    for order in itertools.permutations(range(len(weights)), k):
        p, left = 1.0, sum(weights)
        for i in order:
            p *= weights[i] / left
            left -= weights[i]
        law[order] = p
    return law


@pytest.mark.parametrize("k", [1, 2, 3])
def test_sample_top_k_has_the_law_of_successive_draws(k):
    scores, temperature = [0.31, 0.30, 0.33, 0.25], 0.05
    rng = random.Random(k)
    drawn = Counter(tuple(sample_top_k(scores, k, temperature, rng)) for _ in range(20_000))
    assert same_law(drawn, successive([math.exp(s / temperature) for s in scores], k))


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=12, unique=True), st.integers(1, 12))
def test_sample_top_k_near_zero_is_top_k(scores, k):
    """At a temperature where softmax weights underflow to 0, k distinct ones still come, the best."""
    ordered = sorted(scores)
    gap = min((b - a for a, b in itertools.pairwise(ordered)), default=1.0)
    if gap > 1e-9:
        assert sample_top_k(scores, k, gap / 1e4, random.Random(0)) == top_k(scores, k)


def test_sample_top_k_names_bad_arguments():
    with pytest.raises(ValueError, match="k: got 0"):
        sample_top_k([1.0], 0, 1.0, random.Random(0))
    with pytest.raises(ValueError, match="softmax_temperature: got 0"):
        sample_top_k([1.0], 1, 0.0, random.Random(0))
    with pytest.raises(ValueError, match=r"scores\[1\]: got nan"):
        sample_top_k([1.0, math.nan], 1, 1.0, random.Random(0))


# -- Metropolis-Hastings


@pytest.mark.parametrize("beta", [0.1, 0.7, 5.0])
def test_acceptance_leaves_the_tilted_law_as_it_is(beta):
    """All texts of up to 3 tokens and an end, from a model with random next-token probabilities: the chain's
    transition matrix, written out, is reversible for p(text) exp(reward / beta)."""
    rng = np.random.default_rng(int(beta * 10))
    longest, letters = 3, "ab"
    texts = ["".join(t) + "." for m in range(longest + 1) for t in itertools.product(letters, repeat=m)]
    following = {}  # prefix -> law of the next token

    def next_law(prefix):
        if prefix not in following:
            law = rng.dirichlet([1.0] * 3) if len(prefix) < longest else np.array([0.0, 0.0, 1.0])
            following[prefix] = dict(zip("ab.", law, strict=True))
        return following[prefix]

    def suffix_probability(text, cut):
        return math.prod(next_law(text[:i])[text[i]] for i in range(cut, len(text)))

    rewards = {text: rng.normal() for text in texts}
    flow = np.zeros((len(texts), len(texts)))  # probability of being at one and going to the other
    for i, here in enumerate(texts):
        weight = suffix_probability(here, 0) * math.exp(rewards[here] / beta)
        for j, there in enumerate(texts):
            for cut in range(len(here)):
                if i != j and there[:cut] == here[:cut]:
                    go = suffix_probability(there, cut) / len(here)
                    flow[i, j] += (
                        weight * go * acceptance(rewards[here], rewards[there], len(here), len(there), beta)
                    )
    assert (flow > 0).sum() > len(texts)
    np.testing.assert_allclose(flow, flow.T, rtol=1e-9)


@pytest.mark.parametrize("beta", [0.0, -1.0, math.inf])
def test_acceptance_needs_a_positive_beta(beta):
    with pytest.raises(ValueError, match="beta: got "):
        acceptance(0.0, 0.0, 1, 1, beta)


def test_acceptance_of_far_rewards_does_not_overflow():
    assert acceptance(0.0, 1e9, 5, 5, 0.01) == 1.0
    assert acceptance(1e9, 0.0, 5, 5, 0.01) == 0.0


# -- difficulty


@given(st.lists(st.floats(-5, 5), min_size=5, max_size=60, unique=True), st.integers(2, 5))
def test_difficulty_bins_are_quantiles(mean_scores, bins):
    edges = difficulty_edges(mean_scores, bins)
    found = [difficulty_bin(score, edges) for score in mean_scores]
    sizes = Counter(found)
    assert set(sizes) == set(range(bins))
    assert max(sizes.values()) - min(sizes.values()) <= 1
    by_score = [b for _, b in sorted(zip(mean_scores, found, strict=True), reverse=True)]
    assert by_score == sorted(by_score)  # the higher the scores, the easier


def test_difficulty_names_bad_arguments():
    with pytest.raises(ValueError, match="edges: got "):
        difficulty_bin(0.5, [0.2, 0.4])
    with pytest.raises(ValueError, match="bins: got 5 for 3 mean_scores"):
        difficulty_edges([0.1, 0.2, 0.3])


# -- hyper-nodes


@given(st.lists(st.tuples(st.integers(0, 4), st.floats(0, 1)), max_size=20))
def test_hyper_nodes_group_by_label_best_first(states):
    labels, scores = [label for label, _ in states], [score for _, score in states]
    nodes = hyper_nodes(labels, scores)
    assert sorted(i for node in nodes for i in node) == list(range(len(states)))
    assert [labels[node[0]] for node in nodes] == list(dict.fromkeys(labels))
    for node in nodes:
        assert len({labels[i] for i in node}) == 1
        assert node == sorted(node, key=lambda i: (-scores[i], i))
