"""The mixed model of AB-MCTS-M against dense Gaussian conditioning, importance sampling and NUTS."""

from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from needed import needs
from plain_mixed import plain_draws
from scipy import stats
from tts_decode.select import (
    Gaussian,
    MixedModel,
    generate_or_continue,
    mixed_choice,
    mixed_generator,
    mixed_stack,
    settled,
    stacked_choice,
    thompson_generator,
    ucb_generator,
)

SCORES = st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=5), max_size=4)
GROUPS = [[0.9, 0.7, 0.8], [0.2], [0.4, 0.5]]


@given(SCORES, st.integers(0, 2**32), st.integers(1, 3))
@settings(max_examples=12, deadline=None)
def test_draws_are_those_of_dense_conditioning_on_the_grid(groups, seed, new):
    drawn = MixedModel().draws(groups, random.Random(seed), new)
    assert drawn == pytest.approx(plain_draws(groups, random.Random(seed), new), abs=1e-6)


def test_the_law_is_that_of_the_model():
    """Without a grid: parameters from the prior, weighted by the likelihood of the scores; then the mean and
    the deviation of each group's next score, and of a new group's."""
    rng = np.random.default_rng(3)
    n = 1_600_000
    mu = rng.normal(0.5, 0.2, n)
    a, y = np.abs(rng.normal(0, 0.2, n)), np.abs(rng.normal(0, 0.3, n))
    levels = mu + a * rng.standard_normal((len(GROUPS) + 1, n))
    log = np.zeros(n)
    for level, scores in zip(levels, GROUPS, strict=False):
        log += sum(stats.norm.logpdf(score, level, np.maximum(y, 1e-9)) for score in scores)
    weights = np.exp(log - log.max())
    weights /= weights.sum()
    effective = 1 / (weights**2).sum()
    assert effective > 3000
    rows = [MixedModel().draws(GROUPS, random.Random(seed)) for seed in range(2000)]
    for i, level in enumerate(levels):
        ours = np.array([row[i] for row in rows])
        mean = float(weights @ level)
        deviation = math.sqrt(float(weights @ ((level - mean) ** 2 + y**2)))
        error = deviation * math.sqrt(1 / effective + 1 / len(rows))
        assert abs(ours.mean() - mean) < 4 * error
        assert ours.std() == pytest.approx(deviation, rel=0.06)


def test_the_law_is_that_of_treequest():
    """Its PyMC model, sampled by NUTS: Kolmogorov-Smirnov on the next score of all children and a new one."""
    pytest.importorskip("pymc")
    pytest.importorskip("numpyro")
    pytest.importorskip("treequest")
    import pymc
    from pymc.sampling.jax import sample_numpyro_nuts
    from treequest.algos.ab_mcts_m.pymc_interface import Observation, PyMCInterface

    seen = [Observation(score, "a", 0, child_idx=i) for i, scores in enumerate(GROUPS) for score in scores]
    theirs = PyMCInterface()
    with theirs.build_fitting_model(seen, None):
        trace = sample_numpyro_nuts(chains=4, random_seed=1, progressbar=False, idata_kwargs={})
    with theirs.build_prediction_model(seen, None):
        said = pymc.sample_posterior_predictive(
            trace, var_names=["y", "y_new"], random_seed=1, progressbar=False
        ).posterior_predictive
    columns = [said.y.sel(child_idx=i).values.ravel() for i in range(len(GROUPS))]
    columns.append(said.y_new.values.ravel())
    rows = [MixedModel().draws(GROUPS, random.Random(seed)) for seed in range(len(columns[0]))]
    for column, ours in zip(columns, zip(*rows, strict=True), strict=True):
        assert stats.ks_2samp(column, ours).statistic < 0.04  # NUTS's draws are correlated


def test_empty_groups_and_what_is_not_finite_are_refused():
    with pytest.raises(ValueError, match=r"groups\[1\]: got no score, expected at least one"):
        MixedModel().draws([[0.5], []], random.Random(0))
    with pytest.raises(ValueError, match=r"groups\[0\]\[0\]: got nan"):
        MixedModel().draws([[math.nan]], random.Random(0))


@pytest.mark.parametrize(
    ("scores", "is_settled"),
    [
        ([], False),
        ([0.5] * 3, False),
        ([0.5] * 4, True),
        ([0.501, 0.499, 0.5, 0.9], True),  # 50 hundredths each
        ([0.5, 0.5, 0.6, 0.9], False),
        ([0.0] * 6 + [1.0] * 2, True),
        ([0.0] * 5 + [1.0] * 2, False),
    ],
)
def test_a_subtree_is_settled_as_in_treequest(scores, is_settled):
    """`is_prunable`: min_subtree_size_for_pruning 4, same_score_proportion_threshold 0.75."""
    assert settled(scores) == is_settled


def plain_choice(children, rng):
    draws = plain_draws(children, rng, 1)
    order = sorted(range(len(draws)), key=lambda i: -draws[i])
    if order[0] == len(children):
        return None
    free = [i for i in order if i < len(children) and not plain_settled(children[i])]
    return free[0] if free else None


def plain_settled(scores):
    counts = Counter(round(score * 100) for score in scores)
    return len(scores) >= 4 and max(counts.values()) / len(scores) >= 0.75


@given(SCORES, st.integers(0, 2**32))
@settings(max_examples=15, deadline=None)
def test_a_node_decides_as_in_treequest(children, seed):
    assert mixed_choice(children, random.Random(seed), MixedModel()) == plain_choice(
        children, random.Random(seed)
    )


def test_settled_children_give_way():
    """The best two are settled: the third continues, or a new one if its draw is best."""
    children = [[0.9] * 5, [0.8] * 5, [0.3, 0.4]]
    made = Counter(mixed_choice(children, random.Random(seed), MixedModel()) for seed in range(200))
    assert set(made) == {2, None}
    assert mixed_choice([[0.9] * 5], random.Random(0), MixedModel()) is None


@given(SCORES, st.integers(0, 2**32))
@settings(max_examples=10, deadline=None)
def test_generators_compete_by_all_that_they_made(seen, seed):
    known = [i for i, scores in enumerate([*seen, []]) if scores]
    rng = random.Random(seed)
    if len(seen) == 0:
        expected = 0
    elif not known:
        expected = rng.randrange(len(seen) + 1)
    else:
        draws = plain_draws([seen[i] for i in known], rng, 1)
        expected = [*known, len(seen)][draws.index(max(draws))]
    assert mixed_generator([*seen, []], random.Random(seed), MixedModel()) == expected


def test_any_generator_may_make_the_first_answer():
    made = Counter(mixed_generator([[], [], []], random.Random(seed), MixedModel()) for seed in range(300))
    assert min(made[i] for i in range(3)) > 60


@given(SCORES, st.integers(0, 2**32))
@settings(max_examples=10, deadline=None)
def test_stacked_models_compete_draw_by_draw(children, seed):
    made_by = [i % 2 for i in range(len(children))]
    rng, options = random.Random(seed), []
    for generator in (0, 1):
        own = [i for i, maker in enumerate(made_by) if maker == generator]
        draws = plain_draws([children[i] for i in own], rng, 1)
        options += list(zip(draws, [*own, None], [generator] * len(draws), strict=True))
    ranked = sorted(options, key=lambda option: -option[0])
    free = (option[1:] for option in ranked if option[1] is None or not plain_settled(children[option[1]]))
    assert mixed_stack(children, made_by, 2, random.Random(seed), MixedModel()) == next(free)


@given(st.lists(st.lists(st.floats(0, 1), max_size=5), min_size=1, max_size=5))
def test_ucb_takes_the_best_bound(seen):
    everything = sum(map(len, seen))
    bounds = [
        sum(s) / len(s) + math.sqrt(2) * math.sqrt(math.log(everything) / len(s)) if s else math.inf
        for s in seen
    ]
    chosen = ucb_generator(seen)
    assert bounds[chosen] == pytest.approx(max(bounds))


@pytest.mark.parametrize("strategy", ["multiarm_bandit_thompson", "stack"])
def test_models_are_chosen_as_treequest_chooses_them(strategy):
    """At a node with two models' children: frequencies of each child and of each model's new one, 3,000
    choices, chi-square of the two samples, p above 1e-3."""
    needs("treequest")
    from treequest.algos.ab_mcts_a.prob_state import NodeProbState, PriorConfig
    from treequest.algos.tree import Tree

    children, made_by = [[0.9, 0.4, 0.6], [0.5], [0.3, 0.8]], [0, 1, 1]
    elsewhere = [[0.9, 0.4], [0.5, 0.3, 0.1]]
    tree = Tree.with_root_node()
    state = NodeProbState(["0", "1"], PriorConfig("gaussian"), model_selection_strategy=strategy)
    for scores, maker in zip(children, made_by, strict=True):
        node = tree.add_node(("answer", scores[0]), tree.root)
        state.register_new_child_node(str(maker), node, strategy)
        state.update_action_reward(str(maker), scores[0])
        for score in scores[1:]:
            state.update_node_reward(node, score)
    np.random.seed(5)
    store = {str(i): scores for i, scores in enumerate(elsewhere)}
    theirs = Counter(state.select_next(store) for _ in range(3000))
    prior, rng, ours = Gaussian(), random.Random(5), Counter()
    for _ in range(3000):
        if strategy == "stack":
            child, maker = stacked_choice(children, made_by, 2, prior, rng)
        else:
            child = generate_or_continue(children, prior, rng)
            maker = thompson_generator(elsewhere, prior, rng) if child is None else 0
        ours[str(maker) if child is None else child] += 1
    options = ["0", "1", 0, 1, 2]
    table = [[counts[option] for option in options] for counts in (theirs, ours)]
    assert stats.chi2_contingency(table).pvalue > 1e-3
