"""Selection rules of tree searches: confidence bounds, Thompson sampling, conformal tests, similarity."""

import math
import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from needed import needs
from scipy import integrate, stats
from tts_decode.select import (
    Beta,
    Gaussian,
    conformal_p_value,
    generate_or_continue,
    lexical_similarity,
    most_similar,
    puct,
    rejects,
    self_refine_uct,
    thompson,
    uct,
)

unit = st.floats(0, 1)
# (value, visits) of the children of a node
families = st.lists(st.tuples(unit, st.integers(0, 30)), min_size=1, max_size=8)


# -- bounds


@given(families, st.floats(0, 3))
def test_uct(children, exploration):
    values, visits = zip(*children, strict=True)
    total = 1 + sum(visits)
    expected = [v + exploration * np.sqrt(np.log(total) / max(1, n)) for v, n in children]
    np.testing.assert_allclose(uct(values, visits, total, exploration), expected, rtol=1e-12)
    assert uct(values, visits, 0, exploration) == list(values)  # nobody came: the values decide


@given(families)
def test_puct(children):
    values, visits = zip(*children, strict=True)
    priors = [1 / (i + 2) for i in range(len(children))]
    total = sum(visits)
    c = math.log((total + 19652 + 1) / 19652) + 1.25
    expected = [v + c * p * math.sqrt(total) / (n + 1) for (v, n), p in zip(children, priors, strict=True)]
    np.testing.assert_allclose(puct(values, priors, visits, total), expected, rtol=1e-12)


@given(st.lists(st.lists(st.floats(0, 100), min_size=1, max_size=4), min_size=1, max_size=9), st.randoms())
def test_self_refine_uct_on_random_trees(rewards, rng):
    parents = [-1, *(rng.randrange(-1, i) for i in range(1, len(rewards)))]

    def q(i):
        own = (min(rewards[i]) + np.mean(rewards[i])) / 2
        below = [q(j) for j in range(len(rewards)) if parents[j] == i]
        return (own + max(below)) / 2 if below else own

    values, bounds = self_refine_uct(rewards, parents, 1.4)
    np.testing.assert_allclose(values, [q(i) for i in range(len(rewards))], rtol=1e-12, atol=1e-12)
    for i, parent in enumerate(parents):
        above = len(rewards[parent]) if parent >= 0 else 0
        expected = values[i] + 1.4 * math.sqrt(math.log(above + 1) / len(rewards[i]))
        assert bounds[i] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: uct([math.nan], [1], 1), r"values\[0\]: got nan"),
        (lambda: uct([0.1], [-1], 1), r"visits: got \[-1\]"),
        (lambda: puct([0.1], [1.0], [0], -1), "below -1"),
        (lambda: puct([0.1], [1.0], [0], 1, pb_c_base=0), "pb_c_base: got 0"),
        (lambda: self_refine_uct([[]], [-1]), r"rewards\[0\]: got nothing"),
        (lambda: self_refine_uct([[1.0]], [0]), r"parents\[0\]: got 0"),
        (lambda: Beta().given([1.5]), r"scores: got 1\.5, expected scores in"),
        (lambda: Gaussian().given([math.inf]), r"scores\[0\]: got inf"),
        (lambda: rejects(1.0, [], 1.0), r"alpha: got 1\.0"),
        (lambda: conformal_p_value(math.nan, []), r"score\[0\]: got nan"),
    ],
)
def test_bad_numbers_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# -- Thompson sampling


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=12), st.integers(0, 11))
def test_posteriors_do_not_depend_on_the_order_of_updates(scores, cut):
    """Conjugacy: all scores at once, or some first and the rest given those."""
    whole, steps = Gaussian().given(scores), Gaussian().given(scores[:cut]).given(scores[cut:])
    for name in ("m", "kappa", "nu", "tau_square"):
        assert getattr(whole, name) == pytest.approx(getattr(steps, name), abs=1e-9)
    shares = [abs(score) / 2 for score in scores]
    whole, steps = Beta().given(shares), Beta().given(shares[:cut]).given(shares[cut:])
    assert (whole.a, whole.b) == pytest.approx((steps.a, steps.b))


def _law(posterior):
    """The distribution of a draw: Student's t for the mean of normal scores."""
    if isinstance(posterior, Beta):
        return stats.beta(posterior.a, posterior.b)
    scale = math.sqrt(posterior.tau_square / posterior.kappa)
    return stats.t(posterior.nu, loc=posterior.m, scale=scale)


@pytest.mark.parametrize("prior", [Gaussian(), Beta(), Gaussian(0.5, 2.0, 3.0, 0.4), Beta(2.0, 3.0)])
@pytest.mark.parametrize("scores", [[], [0.8], [0.2, 0.9, 0.7, 0.1]])
def test_draws_follow_the_posterior(prior, scores):
    """Chi-square over 20 equally likely bins, 4,000 draws from a fixed seed; p above 1e-3."""
    posterior, rng = prior.given(scores), random.Random(3)
    draws = [posterior.draw(rng) for _ in range(4000)]
    counts, _ = np.histogram(_law(posterior).cdf(draws), bins=20, range=(0, 1))
    assert stats.chisquare(counts).pvalue > 1e-3


def _beats(one, other):
    """P(draw of one > draw of the other), by quadrature."""
    one, other = _law(one), _law(other)
    return integrate.quad(lambda u: one.sf(other.ppf(u)), 0, 1, limit=200)[0]


@pytest.mark.parametrize("prior", [Gaussian(), Beta()])
def test_generate_or_continue_is_chosen_as_often_as_it_should(prior):
    """Frequencies of GEN and of each of two children against their probabilities: chi-square of 6,000 choices
    from a fixed seed, p above 1e-3."""
    children = [[0.9, 0.4, 0.6], [0.5]]
    gen = _beats(prior.given([0.9, 0.5]), prior.given([0.4, 0.6]))
    first = _beats(prior.given(children[0]), prior.given(children[1]))
    rng = random.Random(11)
    chosen = [generate_or_continue(children, prior, rng) for _ in range(6000)]
    counts = [chosen.count(option) for option in (None, 0, 1)]
    expected = np.array([gen, (1 - gen) * first, (1 - gen) * (1 - first)]) * 6000
    assert stats.chisquare(counts, expected).pvalue > 1e-3


def test_without_children_only_a_new_one_can_be_generated():
    rng = random.Random(0)
    assert {generate_or_continue([], Gaussian(), rng) for _ in range(50)} == {None}


def test_thompson_takes_the_best_of_one_draw_each():
    posteriors = [Gaussian(m, 5.0) for m in (0.1, 0.4, 0.2)]
    draws = [posterior.draw(rng) for rng in [random.Random(8)] for posterior in posteriors]
    assert thompson(posteriors, random.Random(8)) == draws.index(max(draws))


@pytest.mark.parametrize("kind", ["gaussian", "beta"])
def test_decisions_are_those_of_treequest(kind):
    """Its own statistics at a node, on the same scores: frequencies of GEN and of each child, 3,000 choices
    each, chi-square of the two samples, p above 1e-3."""
    needs("treequest")
    from treequest.algos.ab_mcts_a.prob_state import NodeProbState, PriorConfig
    from treequest.algos.tree import Tree

    children = [[0.9, 0.4, 0.6], [0.5], [0.3, 0.8]]
    tree = Tree.with_root_node()
    state = NodeProbState(["a"], PriorConfig(kind), model_selection_strategy="multiarm_bandit_thompson")
    for scores in children:
        node = tree.add_node(("answer", scores[0]), tree.root)
        state.register_new_child_node("a", node, "multiarm_bandit_thompson")
        state.update_action_reward("a", scores[0])
        for score in scores[1:]:
            state.update_node_reward(node, score)
    np.random.seed(5)
    theirs = [state.select_next({"a": []}) for _ in range(3000)]
    prior, rng = Gaussian() if kind == "gaussian" else Beta(), random.Random(5)
    ours = [generate_or_continue(children, prior, rng) for _ in range(3000)]
    table = [[theirs.count(option) for option in ("a", 0, 1, 2)], [ours.count(o) for o in (None, 0, 1, 2)]]
    assert stats.chi2_contingency(table).pvalue > 1e-3


# -- conformal tests


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30, unique=True))
def test_p_values_of_exchangeable_scores_are_uniform(scores):
    """Each of the scores is as likely as any other to be the new one: then p takes 1/n, 2/n, ..., 1 once each
    if none are equal, so that P(p <= alpha) = floor(alpha n) / n."""
    n = len(scores)
    p_values = sorted(conformal_p_value(s, [o for o in scores if o is not s]) for s in scores)
    assert p_values == pytest.approx([(i + 1) / n for i in range(n)])
    for alpha in (0.05, 0.1, 0.3, 0.4, 0.7):
        rate = np.mean([rejects(s, [o for o in scores if o is not s], alpha) for s in scores])
        assert rate == pytest.approx(math.floor(alpha * n + 1e-9) / n)


def test_larger_scores_have_smaller_p_values():
    calibration = [0.3, 1.0, 2.0, 2.0, 7.0]
    p_values = [conformal_p_value(score, calibration) for score in np.linspace(-1, 9, 40)]
    assert all(a >= b for a, b in pairwise(p_values))
    assert (p_values[0], p_values[-1]) == (1.0, 1 / 6)


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.4])
@pytest.mark.parametrize("draw", [np.random.Generator.standard_normal, np.random.Generator.exponential])
def test_online_calibration_controls_the_rejection_rate(alpha, draw):
    """Scores come one by one and join the calibration set after their test. Over 200 sequences of 100 from a
    fixed seed the rate of rejections lies within 4 standard errors of what exact p-values give, the mean of
    floor(alpha n) / n over n = 1..100, and at or below alpha."""
    rng = np.random.default_rng(17)
    rates = []
    for _ in range(200):
        seen = []
        rejected = 0
        for score in draw(rng, size=100):
            rejected += rejects(score, seen, alpha)
            seen.append(score)
        rates.append(rejected / 100)
    expected = np.mean([math.floor(alpha * n + 1e-9) / n for n in range(1, 101)])
    error = np.std(rates) / math.sqrt(len(rates))
    assert abs(np.mean(rates) - expected) < 4 * error
    assert expected <= alpha


# -- similarity


@given(st.text(max_size=30), st.text(max_size=30))
def test_similarity_is_symmetric_and_bounded(one, other):
    value = lexical_similarity(one, other)
    assert value == lexical_similarity(other, one)
    assert -1e-12 <= value <= 1 + 1e-12


def test_most_similar():
    texts = ["multiply the two primes", "the sum of two numbers", "nothing alike"]
    assert most_similar("What is the SUM of two large numbers?", texts) == 1
    assert most_similar("xyz", texts) is None
    assert most_similar("two", []) is None
    assert lexical_similarity("a b b", "b a b") == pytest.approx(1.0)
