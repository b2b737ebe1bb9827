"""Distributions over graphs, and REINFORCE, against all assignments of a small one and finite differences."""

import itertools
import math
import random
from collections import Counter, defaultdict

import pytest
from plain_scripts import draw
from tts_decode.search import CollaborationGraph, GraphDistribution, GraphNode
from tts_decode.search.collaboration.distribution import reinforce

MODELS, ROLES = ("small", "large"), ("assistant", "fuser")

# The parts of a distribution over three nodes, as logits: of an input's probability, and of names by softmax.
LOGITS = {
    ("reads", 1, 0): 0.3,
    ("reads", 2, 0): -0.4,
    ("reads", 2, 1): 0.9,
    **{("model", j, name): 0.4 * j - 0.7 * k for j in range(3) for k, name in enumerate(MODELS)},
    **{("role", j, name): 0.2 - 0.5 * j * k for j in range(3) for k, name in enumerate(ROLES)},
}


def softmax(logits, kind, j):
    weights = {part[2]: math.exp(x) for part, x in logits.items() if part[:2] == (kind, j)}
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def distribution_of(logits):
    return GraphDistribution(
        [[sigmoid(logits["reads", j, i]) for i in range(j)] for j in range(3)],
        [softmax(logits, "role", j) for j in range(3)],
        [softmax(logits, "model", j) for j in range(3)],
    )


def enumerated(logits):
    """The probability of each graph: every node makes every choice, then nodes without effect are cut."""
    p_model, p_role = ([softmax(logits, kind, j) for j in range(3)] for kind in ("model", "role"))
    found = defaultdict(float)
    edges = [(2, 1), (2, 0), (1, 0)]
    for there in itertools.product((False, True), repeat=3):
        for models in itertools.product(MODELS, repeat=3):
            for roles in itertools.product(ROLES, repeat=3):
                p = 1.0
                for (j, i), drawn in zip(edges, there, strict=True):
                    q = sigmoid(logits["reads", j, i])
                    p *= q if drawn else 1 - q
                for j in range(3):
                    p *= p_model[j][models[j]] * p_role[j][roles[j]]
                present = {edge for edge, drawn in zip(edges, there, strict=True) if drawn}
                used = {2} | {i for i in (0, 1) if (2, i) in present}
                if 1 in used and (1, 0) in present:
                    used.add(0)
                inputs = [tuple(i for i in range(j) if (j, i) in present) for j in range(3)]
                nodes = (
                    GraphNode(models[j], roles[j] if inputs[j] else "assistant", inputs[j])
                    if j in used
                    else None
                    for j in range(3)
                )
                found[CollaborationGraph(tuple(nodes))] += p
    return found


def utility(graph):
    return draw("utility", str(graph))


def price(graph):
    return sum({"small": 1, "large": 3}[node.model] for node in graph.nodes if node is not None)


def mean_utility(logits, limit):
    """Over graphs within the limit."""
    within = {graph: p for graph, p in enumerated(logits).items() if price(graph) <= limit}
    return sum(p * utility(graph) for graph, p in within.items()) / sum(within.values())


def slope(function, part, width=1e-4):
    """A central difference by one logit."""
    low, high = (function(LOGITS | {part: LOGITS[part] + step}) for step in (-width, width))
    return (high - low) / (2 * width)


def test_a_graphs_probability_is_the_sum_over_all_that_is_drawn_in_vain():
    distribution, expected = distribution_of(LOGITS), enumerated(LOGITS)
    assert sum(expected.values()) == pytest.approx(1)
    assert len(expected) == 2 + 8 + (8 + 32) + (16 + 32)  # by what the last node reads: none, 0, 1, both
    for graph, p in expected.items():
        assert distribution.probability(graph) == pytest.approx(p)


def test_draws_have_these_probabilities():
    distribution, expected = distribution_of(LOGITS), enumerated(LOGITS)
    rng, count = random.Random(3), 10_000
    drawn = Counter(distribution.draw(rng) for _ in range(count))
    assert drawn.keys() <= expected.keys()
    chi2 = sum((drawn[graph] - count * p) ** 2 / (count * p) for graph, p in expected.items())
    freedom = len(expected) - 1
    assert abs(chi2 - freedom) < 4 * math.sqrt(2 * freedom)


def test_the_gradient_is_that_of_the_logarithm_of_the_probability():
    distribution = distribution_of(LOGITS)
    chosen = sorted(enumerated(LOGITS), key=str)[::7]
    for part in LOGITS:
        low, high = (enumerated(LOGITS | {part: LOGITS[part] + step}) for step in (-1e-4, 1e-4))
        for graph in chosen:
            numeric = (math.log(high[graph]) - math.log(low[graph])) / 2e-4
            assert distribution.gradient(graph).get(part, 0.0) == pytest.approx(numeric, abs=1e-6)


@pytest.mark.parametrize("limit", [math.inf, 4])
def test_the_expected_update_is_the_gradient_of_the_mean_utility(limit):
    """Over all pairs of graphs, also where those over a limit are drawn again."""
    within = {graph: p for graph, p in enumerated(LOGITS).items() if price(graph) <= limit}
    share = sum(within.values())
    distribution, expected = distribution_of(LOGITS), defaultdict(float)
    for (a, p), (b, q) in itertools.combinations(within.items(), 2):  # equal ones move nothing
        moved = reinforce(distribution, [a, b], [utility(a), utility(b)], 0.5)
        weight = 2 * p * q / share**2 / 0.5
        for j in range(3):
            for i in range(j):
                before, after = distribution.reads[j][i], moved.reads[j][i]
                step = math.log(after / (1 - after)) - math.log(before / (1 - before))
                expected["reads", j, i] += weight * step
            for kind, old, new in (
                ("model", distribution.models[j], moved.models[j]),
                ("role", distribution.roles[j], moved.roles[j]),
            ):
                first, second = old
                step = math.log(new[first] / new[second]) - math.log(old[first] / old[second])
                expected[kind, j, first] += weight * step  # of the difference of two logits
    for part, step in expected.items():
        numeric = slope(lambda logits: mean_utility(logits, limit), part)
        if part[0] == "reads":
            assert step == pytest.approx(numeric, abs=1e-7)
        else:
            second = (*part[:2], (MODELS if part[0] == "model" else ROLES)[1])
            other = slope(lambda logits: mean_utility(logits, limit), second)
            assert step == pytest.approx(numeric - other, abs=1e-7)
    assert any(abs(step) > 0.01 for step in expected.values())


def test_probabilities_of_0_and_1_stay_and_steps_of_any_size_are_finite():
    distribution = GraphDistribution(
        [[], [0.0], [1.0, 0.5]], [{"assistant": 1}] * 3, [{"small": 1.0, "large": 0.0}] * 3
    )
    steps = {part: 2000.0 for part in [("reads", 1, 0), ("reads", 2, 1), ("model", 0, "large")]}
    moved = distribution.moved(steps | {("reads", 2, 0): -2000.0})
    assert moved.reads == ((), (0.0,), (1.0, 1.0))
    assert moved.models[0] == {"small": 1.0, "large": 0.0}
    rng = random.Random(0)
    for _ in range(50):
        graph = distribution.draw(rng)
        assert graph.nodes[2].inputs in ((0,), (0, 1))
        assert graph.models == {"small"}


def test_draws_are_graphs_without_cycles_and_without_nodes_in_vain():
    distribution, rng = GraphDistribution.uniform(7, MODELS, p_read=0.3), random.Random(1)
    sizes = set()
    for _ in range(500):
        graph = distribution.draw(rng)
        reached, open_places = set(), [6]
        while open_places:  # a walk from the answer ends, and reaches every node
            place = open_places.pop()
            assert all(i < place for i in graph.nodes[place].inputs)
            reached.add(place)
            open_places += set(graph.nodes[place].inputs) - reached
        assert reached == {place for place, node in enumerate(graph.nodes) if node is not None}
        sizes.add(len(reached))
    assert sizes == set(range(1, 8))


def test_a_seed_draws_the_same_graphs():
    distribution = GraphDistribution.uniform(5, MODELS)
    first, second = ([distribution.draw(random.Random(seed)) for seed in range(20)] for _ in range(2))
    assert first == second
    assert len(set(first)) > 10


A, B = GraphNode("a"), GraphNode("b")


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ((), r"nodes: got \(\), expected a node at the last place"),
        ((A, None), "expected a node at the last place"),
        ((A, GraphNode("a", "fuser", (1,))), r"nodes\[1\].inputs: got \(1,\), expected distinct places"),
        ((GraphNode("a", "fuser", (1,)), A), r"nodes\[0\].inputs: got \(1,\).*out of \[\].*cycles"),
        ((A, B, GraphNode("a", "fuser", (1, 0))), r"nodes\[2\].inputs: got \(1, 0\).*ascending"),
        ((A, None, GraphNode("a", "fuser", (0, 1))), r"nodes\[2\].inputs: got \(0, 1\)"),
        ((A, GraphNode("a", "fuser", (-1,))), r"nodes\[1\].inputs: got \(-1,\)"),
        ((A, B), r"nodes: got no reader of nodes \[0\]"),
        ((GraphNode("a", "fuser"),), r"nodes\[0\].role: got 'fuser' of a node without inputs"),
    ],
)
def test_what_is_no_graph_is_refused(nodes, message):
    with pytest.raises(ValueError, match=message):
        CollaborationGraph(nodes)


def test_prices_and_paths_by_hand():
    graph = CollaborationGraph(
        (A, B, None, GraphNode("b", "fuser", (0, 1)), GraphNode("a", "assistant", (1, 3)))
    )
    assert graph.price() == 4
    assert graph.price({"a": 1, "b": 10}) == 22
    assert graph.longest_path({0: 7, 1: 2, 3: 1, 4: 5}) == 13
    assert str(graph) == "0 a; 1 b; 3 b, fuser of 0, 1; 4 a, assistant of 1, 3"
    assert graph.models == {"a", "b"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reads": []}, "reads, roles, models: got 0, 2 and 2 nodes"),
        ({"roles": [{"assistant": 1}]}, "reads, roles, models: got 2, 1 and 2 nodes"),
        ({"reads": [[], [0.5, 0.5]]}, r"reads\[1\]: got 2 entries, expected 1"),
        ({"reads": [[], [1.5]]}, r"reads\[1\]\[0\]: got 1.5"),
        ({"models": [{"a": 1}, {"a": 0.5}]}, r"models\[1\]: got a sum of 0.5, expected 1"),
        ({"models": [{"a": 1}, {}]}, r"models\[1\]: got a sum of 0, expected 1"),
        ({"roles": [{"assistant": 1}, {"b": 2, "c": -1}]}, r"roles\[1\]\['c'\]: got -1"),
    ],
)
def test_what_is_no_distribution_is_refused(change, message):
    fits = {"reads": [[], [0.5]], "roles": [{"assistant": 1}] * 2, "models": [{"a": 1}] * 2}
    with pytest.raises(ValueError, match=message):
        GraphDistribution(**fits | change)
    with pytest.raises(ValueError, match="models: got none"):
        GraphDistribution.uniform(2, [])
    with pytest.raises(ValueError, match="num_nodes: got 0"):
        GraphDistribution.uniform(0, ["a"])
