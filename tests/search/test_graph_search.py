"""The search over collaboration graphs: what it learns, its limits, and what an agent may say."""

import asyncio
import random
from dataclasses import replace

import pytest
from plain_scripts import draw
from scripted import scripted_decoder
from tts_decode.search import (
    CollaborationGraph,
    GraphArchive,
    GraphDistribution,
    GraphNode,
    GraphRound,
    GraphTrial,
    graph_agent,
    search_graphs,
)
from tts_decode.search.collaboration.agent import revised
from tts_decode.search.collaboration.distribution import reinforce

MODELS = ("small", "large")


def environment(worth):
    """Scores by a function of the graph; each call of a large model costs and lasts 8, of a small one 1."""
    asked = []

    async def measure(graph):
        asked.append(graph)
        sizes = {p: {"small": 1, "large": 8}[n.model] for p, n in enumerate(graph.nodes) if n is not None}
        tokens = tuple(float(sizes.get(place, 0)) for place in range(len(graph.nodes)))
        return GraphTrial(graph, worth(graph), tokens, 0.0, float(sum(tokens)), graph.longest_path(sizes))

    return measure, asked


def drawn_score(graph):
    return draw("score", str(graph))


def is_parallel(graph):
    """Two small nodes that a large one fuses."""
    small = sum(node is not None and node.model == "small" and not node.inputs for node in graph.nodes)
    last = graph.nodes[-1]
    return 0.4 * (last.model == "large") + 0.3 * (last.role == "fuser") + 0.15 * min(small, 2)


START = GraphDistribution.uniform(4, MODELS)


def expected_utility(distribution, worth, count=1000):
    rng = random.Random(7)
    return sum(worth(distribution.draw(rng)) for _ in range(count)) / count


@pytest.mark.parametrize("seed", range(3))
def test_reinforce_raises_the_mean_utility(seed):
    measure, _ = environment(is_parallel)
    archive = asyncio.run(
        search_graphs(START, measure, rounds=40, graphs_per_round=8, learning_rate=4, seed=seed)
    )
    before, after = (expected_utility(d, is_parallel) for d in (START, archive.distribution))
    assert after > before + 0.25
    assert archive.best.score == 1.0
    assert archive.distribution.models[3]["large"] > 0.9


def test_a_graph_is_measured_once_and_the_same_seed_makes_the_same_trials():
    runs = []
    for seed in (1, 1, 2):
        measure, asked = environment(drawn_score)
        archive = asyncio.run(search_graphs(START, measure, seed=seed))
        assert [trial.graph for trial in archive.trials] == asked
        assert len(set(asked)) == len(asked)
        assert len(archive.rounds) == 10
        assert all(len(drawn.trials) == len(drawn.utilities) == 4 for drawn in archive.rounds)
        runs.append((archive.rounds, archive.distribution))
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("limit", [9, 2, 1])
def test_no_graph_over_the_limit_is_measured(limit):
    """Though larger graphs and large models score more."""
    measure, asked = environment(lambda graph: len(graph.calls) + 5 * ("large" in graph.models))
    prices = {"small": 1, "large": 8}
    archive = asyncio.run(
        search_graphs(START, measure, rounds=20, learning_rate=2, prices=prices, max_price=limit)
    )
    paid = [sum(prices[node.model] for node in graph.nodes if node is not None) for graph in asked]
    assert max(paid) == limit
    assert archive.best.cost <= limit


def test_a_limit_that_no_graph_is_within_is_named():
    measure, asked = environment(drawn_score)
    with pytest.raises(ValueError, match=r"max_price: got 0.5, and none of 1000 drawn graphs is within it"):
        asyncio.run(search_graphs(START, measure, max_price=0.5))
    assert asked == []


def test_a_utility_weighs_score_against_latency():
    measure, _ = environment(is_parallel)

    def utility(trial):
        return trial.score - 0.1 * trial.latency

    archive = asyncio.run(search_graphs(START, measure, utility=utility, rounds=5))
    assert utility(archive.best) == max(map(utility, archive.trials))
    assert archive.best.score < max(trial.score for trial in archive.trials)
    with pytest.raises(ValueError, match="what utility returned: got nan"):
        asyncio.run(search_graphs(START, measure, utility=lambda trial: float("nan")))


def test_of_equal_utilities_the_cheapest_is_the_best():
    measure, _ = environment(lambda graph: 0.5)
    small, large = GraphNode("small"), GraphNode("large")
    graphs = [
        CollaborationGraph((small, small, GraphNode("large", "fuser", (0, 1)))),
        CollaborationGraph((small,)),
        CollaborationGraph(
            (
                small,
                large,
                None,
                GraphNode("large", "assistant", (0,)),
                GraphNode("small", "fuser", (0, 1, 3)),
            )
        ),
    ]
    trials = [replace(asyncio.run(measure(g)), cost=c) for g, c in zip(graphs, (5, 3, 4), strict=True)]
    archive = GraphArchive(START, [GraphRound(START, tuple(trials), (0.5, 0.5, 0.5))])
    assert archive.best is trials[1]
    assert archive.report().splitlines()[2:] == [
        "| 0 small; 1 small; 2 large, fuser of 0, 1 | 0.500 | 50.0% | 1 + 1 + 8 | 5 | 9 |",
        "| **0 small** | 0.500 | 50.0% | 1 | 3 | 1 |",
        "| 0 small; 1 large; 3 large, assistant of 0; 4 small, fuser of 0, 1, 3 "
        "| 0.500 | 50.0% | 1 + 8 + 8 + 1 | 4 | 10 |",
    ]
    assert GraphArchive(START).best is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "rounds: got 0"),
        ({"graphs_per_round": 1}, "graphs_per_round: got 1, expected >= 2"),
        ({"learning_rate": -1}, "learning_rate: got -1"),
        ({"max_price": -1}, "max_price: got -1"),
        ({"prices": {"small": 1}}, r"prices: got \['small'\], expected one for the model 'large'"),
    ],
)
def test_numbers_out_of_range_are_named(options, message):
    measure, asked = environment(drawn_score)
    with pytest.raises(ValueError, match=message):
        asyncio.run(search_graphs(START, measure, **options))
    assert asked == []


# --- agents


def test_an_agent_is_a_function_that_replaces_the_update():
    """It is asked before the first round and after each; None leaves the update to REINFORCE."""
    measure, _ = environment(drawn_score)
    only_small = GraphDistribution(START.reads, START.roles, [{"small": 1.0, "large": 0.0}] * 4)
    shown = []

    async def agent(archive):
        shown.append((len(archive.rounds), archive.distribution))
        return only_small if len(archive.rounds) < 2 else None

    archive = asyncio.run(search_graphs(START, measure, agent=agent, rounds=3))
    assert [count for count, _ in shown] == [0, 1, 2, 3]
    assert [drawn.distribution for drawn in archive.rounds[:2]] == [only_small, only_small]
    assert shown[0][1] == START
    assert archive.distribution != archive.rounds[2].distribution != only_small
    assert all(trial.graph.models == {"small"} for trial in archive.trials)


def test_a_distribution_without_a_graph_in_the_limit_leaves_the_update_to_reinforce():
    measure, asked = environment(drawn_score)
    all_edges = GraphDistribution([[1.0] * j for j in range(4)], START.roles, START.models)
    by_agent = asyncio.run(
        search_graphs(START, measure, agent=lambda archive: all_edges, max_price=3, rounds=3)
    )
    by_rule = asyncio.run(search_graphs(START, measure, max_price=3, rounds=3))
    assert by_agent.rounds == by_rule.rounds
    assert max(len(graph.calls) for graph in asked) == 3


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        ([0.5], TypeError, "agent: got list, expected a GraphDistribution; it returns one, or None"),
        (GraphDistribution.uniform(3, MODELS), ValueError, "agent: got a distribution over .*the same nodes"),
        (GraphDistribution.uniform(4, ("small", "huge")), ValueError, "agent: got .*'huge'"),
        (GraphDistribution.uniform(4, MODELS, roles=("assistant",)), ValueError, "agent: got"),
    ],
)
def test_an_agents_malformed_answer_is_named(returned, error, message):
    measure, asked = environment(drawn_score)
    with pytest.raises(error, match=message):
        asyncio.run(search_graphs(START, measure, agent=lambda archive: returned))
    assert asked == []


def test_a_language_model_revises_the_distribution():
    replies = ["Start small.\nmodel 1 small: 0.9\n- reads 1 0: 1.0", "no idea", "role 1 fuser: 0.8"]
    said = []

    def script(prefix, k):
        said.append(prefix)
        return replies[len(said) - 1], "eos"

    decoder = scripted_decoder(script)
    start = GraphDistribution.uniform(2, MODELS)
    measure, _ = environment(drawn_score)
    archive = asyncio.run(
        search_graphs(
            start,
            measure,
            agent=graph_agent(decoder),
            rounds=2,
            graphs_per_round=2,
            prices={"small": 1, "large": 8},
            max_price=9,
        )
    )
    assert "1: small 0.50, large 0.50; assistant 0.50, fuser 0.50; reads 0 0.50\n" in said[0]
    assert "nothing\n" in said[0]
    assert "may cost 9 in all; a call counts 1 of small, 8 of large.\n" in said[0]
    first = archive.rounds[0]
    assert first.distribution.models[1] == pytest.approx({"small": 0.9, "large": 0.1})
    assert first.distribution.reads[1] == (0.95,)
    trial = first.trials[0]
    results = f"utility {trial.score:.3f}, {trial.score:.0%} solved, cost {trial.cost:.0f}, latency"
    assert f"{trial.graph}: {results}" in said[1]
    graphs, worth = [t.graph for t in first.trials], first.utilities
    assert worth[0] != worth[1]
    assert archive.rounds[1].distribution == reinforce(first.distribution, graphs, worth, 1.0)
    assert archive.distribution.roles[1] == pytest.approx({"assistant": 0.2, "fuser": 0.8})
    assert len(said) == 3
    assert decoder.stats().branches == 0


def test_probabilities_are_read_from_a_reply():
    three = dict.fromkeys(("a", "b", "meta/c-1"), 1 / 3)
    start = GraphDistribution(
        [[], [0.0], [0.5, 1.0]], [{"assistant": 1.0}] * 3, [dict.fromkeys(three, 1 / 3)] * 3
    )
    reply = """I would say: reads 2 0: 0.1
    reads 2 0: 0
    * Model 1 meta/c-1: 0.5
    model 2 a: 0.9
    model 2 b: 0.9
    model 0 unknown: 0.9
    model 7 a: 0.9
    reads 1 0: 0.9
    reads 2 1: 0.1
    reads 0 2: 0.5
    reads 2 x: 0.5
    role 1 assistant: 0.2
    model 0 a: much
    model 0 a: 7"""
    found = revised(start, reply, 0.05)
    assert found.reads == ((), (0.0,), (0.05, 1.0))
    assert found.roles == tuple(start.roles)
    assert found.models[0] == start.models[0]
    assert found.models[1] == pytest.approx({"a": 0.25, "b": 0.25, "meta/c-1": 0.5})
    assert found.models[2] == pytest.approx({"a": 0.9 / 1.85, "b": 0.9 / 1.85, "meta/c-1": 0.05 / 1.85})
    assert revised(start, "graphs are hard: 0.5", 0.05) is None
    with pytest.raises(ValueError, match=r"least: got 0.5"):
        graph_agent(None, least=0.5)
