"""The ETS cost model against brute force over every set of leaves."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from published_walk import published_counts
from tts_decode.select import ets_objective, ets_select, rebase_weights, retained_nodes, walk_ceilings
from tts_decode.select.cost_model import RESOLUTION

from benches.bench_ets import Instance, instance


@st.composite
def trees(draw):
    """A random tree with 1 to 9 leaves: (outcomes, parents, leaves, clusters, tokens of each node)."""
    parents = [-1] + [draw(st.integers(0, v)) for v in range(draw(st.integers(0, 12)))]
    childless = [v for v in range(len(parents)) if v not in parents]
    leaves = draw(st.permutations(childless))[:9]
    counts = draw(st.lists(st.integers(0, 5), min_size=len(leaves), max_size=len(leaves)))
    total = max(sum(counts), 1)
    clusters = draw(st.lists(st.integers(0, 3), min_size=len(leaves), max_size=len(leaves)))
    tokens = draw(st.lists(st.integers(0, 40), min_size=len(parents), max_size=len(parents)))
    return [c / total for c in counts], parents, leaves, clusters, tokens


@settings(max_examples=150)
@given(
    trees(),
    st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    st.sampled_from([0.0, 0.5, 1.4]),
    st.booleans(),
    st.booleans(),
)
def test_solver_equals_brute_force(tree, lambda_b, lambda_d, per_token, use_clusters):
    outcomes, parents, leaves, clusters, tokens = tree
    costs = [float(t) for t in tokens] if per_token else [1.0] * len(parents)
    arguments = (outcomes, parents, leaves, costs, clusters if use_clusters else None)
    lambdas = {"lambda_b": lambda_b, "lambda_d": lambda_d}
    subsets = [s for s in itertools.product([False, True], repeat=len(leaves)) if any(s)]
    best = max(ets_objective(s, *arguments, **lambdas) for s in subsets)
    kept = ets_select(*arguments, **lambdas)
    assert any(kept)
    assert ets_objective(kept, *arguments, **lambdas) >= best - RESOLUTION
    assert kept == ets_select(*arguments, **lambdas)
    greedy = ets_select(*arguments, **lambdas, method="greedy")
    assert any(greedy)
    assert ets_objective(greedy, *arguments, **lambdas) <= best + 1e-9


@given(trees(), st.sampled_from([0.0, 1.0]))
def test_without_a_node_cost_every_leaf_is_kept(tree, lambda_d):
    outcomes, parents, leaves, clusters, _ = tree
    kept = ets_select(
        outcomes, parents, leaves, [1.0] * len(parents), clusters, lambda_b=0.0, lambda_d=lambda_d
    )
    assert kept == [True] * len(leaves)


# Two subtrees of three leaves under one root:  0 -> 1 -> {3, 4, 5},  0 -> 2 -> {6, 7, 8}.
PARENTS = [-1, 0, 0, 1, 1, 1, 2, 2, 2]
LEAVES = [3, 4, 5, 6, 7, 8]


def test_objective_by_hand():
    outcomes = [0.4, 0.1, 0.1, 0.2, 0.1, 0.1]
    kept = [True, True, False, True, False, False]
    value = ets_objective(
        kept, outcomes, PARENTS, LEAVES, [1.0] * 9, [0, 0, 1, 2, 1, 3], lambda_b=0.9, lambda_d=1.2
    )
    assert value == pytest.approx(0.7 - 0.9 * 6 / 9 + 1.2 * 2 / 4)
    assert retained_nodes(PARENTS, [3, 4, 6]) == [0, 1, 2, 3, 4, 6]


def test_cost_prunes_the_subtree_that_pays_least_and_coverage_brings_it_back():
    outcomes = [0.3, 0.3, 0.2, 0.1, 0.05, 0.05]
    clusters = [0, 0, 0, 0, 0, 1]
    kept = ets_select(outcomes, PARENTS, LEAVES, [1.0] * 9, clusters, lambda_b=1.0, lambda_d=0.0)
    assert kept == [True, True, True, False, False, False]
    kept = ets_select(outcomes, PARENTS, LEAVES, [1.0] * 9, clusters, lambda_b=1.0, lambda_d=1.0)
    assert kept == [True, True, True, False, False, True]


def test_token_cost_sees_what_node_cost_does_not():
    outcomes = [0.2, 0.2, 0.15, 0.15, 0.15, 0.15]
    long_first = [0.0, 300.0, 1.0, 50.0, 50.0, 50.0, 5.0, 5.0, 5.0]
    kept = ets_select(outcomes, PARENTS, LEAVES, long_first, lambda_b=1.0)
    assert kept == [False, False, False, True, True, True]


def test_like_leaves_are_kept_from_the_lowest_index():
    """Two of four equal leaves pay for themselves by coverage; which two is decided by the index."""
    parents, leaves = [-1, 0, 0, 0, 0], [1, 2, 3, 4]
    kept = ets_select([0.0] * 4, parents, leaves, [1.0] * 5, [0, 1, 0, 1], lambda_b=1.0, lambda_d=1.0)
    assert kept == [True, True, False, False]
    kept = ets_select([0.0] * 4, parents, leaves[::-1], [1.0] * 5, [1, 1, 0, 0], lambda_b=1.0, lambda_d=1.0)
    assert kept == [True, False, True, False]


def published_programme(tree: Instance) -> float:
    """The optimum of the objective as its authors write it, a binary variable for every node and cluster, by
    HiGHS."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    nodes = retained_nodes(tree.parents, tree.leaves)
    labels = sorted(set(tree.clusters))
    column = {node: i for i, node in enumerate(nodes)}
    covered = {label: len(nodes) + k for k, label in enumerate(labels)}
    width = len(nodes) + len(labels)
    total = math.fsum(tree.costs[v] for v in nodes)
    gain = np.zeros(width)
    rows = []
    for node in nodes:
        gain[column[node]] = -tree.lambdas["lambda_b"] * tree.costs[node] / total
        if tree.parents[node] >= 0:
            rows.append(np.zeros(width))
            rows[-1][[column[tree.parents[node]], column[node]]] = 1, -1
    for label, k in covered.items():
        gain[k] = tree.lambdas["lambda_d"] / len(labels)
        rows.append(np.zeros(width))
        rows[-1][[column[v] for v, c in zip(tree.leaves, tree.clusters, strict=True) if c == label]] = 1
        rows[-1][k] = -1
    for leaf, outcome in zip(tree.leaves, tree.outcomes, strict=True):
        gain[column[leaf]] += outcome
    solution = milp(
        -1e6 * gain,
        integrality=np.ones(width),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(np.stack(rows), 0, np.inf),
        options={"mip_rel_gap": 0.0},
    )
    return -solution.fun / 1e6


@settings(max_examples=25)
@given(
    st.integers(0, 10**6),
    st.sampled_from([2, 4, 7]),
    st.sampled_from([10, 30, 60, 100]),
    st.sampled_from([64, 128, 256]),
)
def test_large_trees_equal_the_published_programme(seed, depth, clusters, leaves):
    tree = instance(seed, leaves, depth, clusters)
    best = published_programme(tree)
    assert tree.objective(tree.select("exact")) == pytest.approx(best, abs=RESOLUTION)
    greedy = tree.objective(tree.select("greedy"))
    assert best - 0.05 < greedy < best + RESOLUTION


def programme_in_pulp(scores, parents, leaves, clusters, lambda_b, lambda_d):
    """The selection as its authors state it to PuLP, one price for every node: (its value, which leaves)."""
    pulp = pytest.importorskip("pulp")
    above = {}  # branch -> positions of the leaves below it
    for i, node in enumerate(leaves):
        while (node := parents[node]) >= 0:
            above.setdefault(node, []).append(i)
    width, price = len(leaves), 1 / (len(leaves) + len(above))
    labels = sorted(set(clusters))
    problem = pulp.LpProblem("ets", pulp.LpMaximize)
    kept = [pulp.LpVariable(f"leaf{i}", cat="Binary") for i in range(width)]
    branch = {node: pulp.LpVariable(f"branch{node}", cat="Binary") for node in above}
    covered = {label: pulp.LpVariable(f"cluster{label}", cat="Binary") for label in labels}
    shares = [count / width for count in published_counts(width, scores)]
    problem += (
        pulp.lpSum(share * x for share, x in zip(shares, kept, strict=True))
        - lambda_b * price * pulp.lpSum([*branch.values(), *kept])
        + lambda_d / len(labels) * pulp.lpSum(covered.values())
    )
    for label, c in covered.items():
        problem += pulp.lpSum(x for x, own in zip(kept, clusters, strict=True) if own == label) >= c
    for node, below in above.items():
        problem += branch[node] <= pulp.lpSum(kept[i] for i in below)
        for i in below:
            problem += branch[node] >= kept[i]
    problem += pulp.lpSum(kept) >= 1
    assert problem.solve(pulp.PULP_CBC_CMD(msg=False, gapRel=0)) == 1
    return pulp.value(problem.objective), [x.value() > 0.5 for x in kept]


@pytest.mark.parametrize("seed", range(12))
def test_the_selection_equals_the_published_one_in_pulp(seed):
    """Outcomes by the published walk, the published programme, and the walk over the leaves that stay."""
    tree = instance(seed, 24, 3, 8)
    rng = np.random.default_rng(seed)
    scores = rng.uniform(0.2, 0.9, len(tree.leaves)).tolist()  # no two alike
    lambdas = {"lambda_b": [1.0, 1.5, 2.0][seed % 3], "lambda_d": [1.5, 0.2][seed % 2]}
    best, chosen = programme_in_pulp(scores, tree.parents, tree.leaves, tree.clusters, **lambdas)

    width = len(tree.leaves)
    outcomes = [count / width for count in walk_ceilings(width, rebase_weights(scores))]
    arguments = (outcomes, tree.parents, tree.leaves, [1.0] * len(tree.parents), tree.clusters)
    kept = ets_select(*arguments, **lambdas)
    assert ets_objective(kept, *arguments, **lambdas) == pytest.approx(best, abs=RESOLUTION)
    if kept == chosen:  # else a tie, which we break towards more leaves
        survivors = [i for i, keep in enumerate(chosen) if keep]
        ours = walk_ceilings(width, rebase_weights([scores[i] for i in survivors]))
        assert ours == published_counts(width, [scores[i] for i in survivors])
    else:
        assert ets_objective(chosen, *arguments, **lambdas) == pytest.approx(best, abs=1e-6)
        assert sum(kept) >= sum(chosen)


def test_a_fractional_programme_is_solved_in_integers():
    """Every pair of three clusters is below one of three nodes: half of each node is the linear optimum."""
    parents = [-1, 0, 0, 0, 1, 1, 2, 2, 3, 3]
    costs = [0.0, 6.0, 6.0, 6.0] + [1.0] * 6
    clusters = [0, 1, 1, 2, 2, 0]
    tree = Instance(
        [0.0] * 6, parents, [4, 5, 6, 7, 8, 9], costs, clusters, {"lambda_b": 1.0, "lambda_d": 1.1}
    )
    subsets = [list(s) for s in itertools.product([False, True], repeat=6) if any(s)]
    assert tree.objective(tree.select("exact")) == pytest.approx(max(map(tree.objective, subsets)), abs=1e-9)


def test_where_nothing_pays_the_least_loss_is_kept():
    outcomes, costs = [0.0, 0.01, 0.0], [1.0, 5.0, 4.0, 4.0]
    for method in ("exact", "greedy"):
        kept = ets_select(outcomes, [-1, 0, 0, 0], [1, 2, 3], costs, lambda_b=2.0, method=method)
        assert kept == [False, True, False]


GOOD = {"outcomes": [0.5, 0.5], "parents": [-1, 0, 0], "leaves": [1, 2], "costs": [1.0, 1.0, 1.0]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "fast"}, "method: got 'fast'"),
        ({"lambda_b": -1.0}, "lambda_b: got -1.0"),
        ({"lambda_d": float("nan")}, "lambda_d: got nan"),
        ({"leaves": [], "outcomes": []}, "leaves: got nothing"),
        ({"outcomes": [1.0]}, "1 outcomes"),
        ({"clusters": [0]}, "1 clusters"),
        ({"costs": [1.0]}, "costs: got 1 for 3 nodes"),
        ({"costs": [1.0, -1.0, 1.0]}, "costs"),
        ({"outcomes": [float("inf"), 1.0]}, r"outcomes\[0\]: got inf"),
        ({"parents": [-1, 2, 0]}, r"parents\[1\]: got 2"),
        ({"leaves": [1, 3]}, "node ids in 0..2"),
        ({"leaves": [1, 1]}, "distinct"),
        ({"leaves": [0, 1]}, "above another"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        ets_select(**({"lambda_b": 1.0} | GOOD | change))
